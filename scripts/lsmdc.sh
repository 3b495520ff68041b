#!/usr/bin/env bash
# Text-video retrieval on LSMDC.
# Values change as in msrvtt.sh; dataloaders/lsmdc.py lists the files that DATA_PATH must hold.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/lsmdc}
data_path=${data_path:-$DATA_PATH}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stop}

# CLIP4Clip's values. None are published for STOP; prompts have DGL's, 64 pairs on each of 8 GPUs.
case $method in
    clip4clip) epochs=${epochs:-5} batch_size=${batch_size:-128} lr=${lr:-1e-4} ;;
    *) epochs=${epochs:-10} batch_size=${batch_size:-512} lr=${lr:-1e-2} ;;
esac
batch_size_val=${batch_size_val:-32}
output_dir=${output_dir:-runs/lsmdc_$method}

train_retrieval \
    --datatype lsmdc --expand_msrvtt_sentences --data_path "$data_path" --features_path "$features_path" \
    --batch_size_val "$batch_size_val" \
    --output_dir "$output_dir" "$@"
