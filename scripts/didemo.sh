#!/usr/bin/env bash
# Paragraph-to-video retrieval on DiDeMo.
# Values change as in msrvtt.sh; dataloaders/didemo.py lists the files that DATA_PATH must hold.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/didemo}
data_path=${data_path:-$DATA_PATH}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stop}

# CLIP4Clip's values. None are published for prompts on DiDeMo; these are STOP's for ActivityNet.
case $method in
    clip4clip) epochs=${epochs:-5} batch_size=${batch_size:-128} lr=${lr:-1e-4} ;;
    *) epochs=${epochs:-10} batch_size=${batch_size:-128} lr=${lr:-1e-3} ;;
esac
max_words=${max_words:-64}
max_frames=${max_frames:-64}
output_dir=${output_dir:-runs/didemo_$method}

train_retrieval \
    --datatype didemo --data_path "$data_path" --features_path "$features_path" \
    --max_words "$max_words" --max_frames "$max_frames" \
    --output_dir "$output_dir" "$@"
