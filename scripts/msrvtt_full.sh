#!/usr/bin/env bash
# Text-video retrieval on MSR-VTT's full split: each of a video's 20 captions is a training pair or a query.
# Values change as in msrvtt.sh; dataloaders/msrvtt_full.py lists the files that DATA_PATH must hold.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/msrvtt}
data_path=${data_path:-$DATA_PATH/MSRVTT_data.json}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stop}

# The values of the 1k-A split: no published code has values for this split.
case $method in
    clip4clip) epochs=${epochs:-5} batch_size=${batch_size:-128} lr=${lr:-1e-4} ;;
    *) epochs=${epochs:-5} batch_size=${batch_size:-128} lr=${lr:-1e-3} ;;
esac
output_dir=${output_dir:-runs/msrvtt_full_$method}

train_retrieval \
    --datatype msrvtt_full --expand_msrvtt_sentences --data_path "$data_path" --features_path "$features_path" \
    --output_dir "$output_dir" "$@"
