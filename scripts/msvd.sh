#!/usr/bin/env bash
# Text-video retrieval on MSVD: each of a video's about 40 captions is a training pair or a query.
# Values change as in msrvtt.sh; dataloaders/msvd.py lists the files that DATA_PATH must hold.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/msvd}
data_path=${data_path:-$DATA_PATH}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stop}

# CLIP4Clip's values. None are published for prompts on MSVD; these are MSR-VTT's.
case $method in
    clip4clip) epochs=${epochs:-5} batch_size=${batch_size:-128} lr=${lr:-1e-4} ;;
    *) epochs=${epochs:-5} batch_size=${batch_size:-128} lr=${lr:-1e-3} ;;
esac
output_dir=${output_dir:-runs/msvd_$method}

train_retrieval \
    --datatype msvd --expand_msrvtt_sentences --data_path "$data_path" --features_path "$features_path" \
    --output_dir "$output_dir" "$@"
