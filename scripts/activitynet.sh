#!/usr/bin/env bash
# Paragraph-to-video retrieval on ActivityNet Captions, evaluated on val_1.
# Values change as in msrvtt.sh; dataloaders/activitynet.py lists the files that DATA_PATH must hold.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/activitynet}
data_path=${data_path:-$DATA_PATH}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stop}

# The published values of CLIP4Clip and of STOP, 16 pairs on each of 8 GPUs.
case $method in
    clip4clip) epochs=${epochs:-5} batch_size=${batch_size:-128} lr=${lr:-1e-4} ;;
    *) epochs=${epochs:-10} batch_size=${batch_size:-128} lr=${lr:-1e-3} ;;
esac
max_words=${max_words:-64}
max_frames=${max_frames:-64}
output_dir=${output_dir:-runs/activitynet_$method}

train_retrieval \
    --datatype activitynet --data_path "$data_path" --features_path "$features_path" \
    --max_words "$max_words" --max_frames "$max_frames" \
    --output_dir "$output_dir" "$@"
