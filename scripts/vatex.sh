#!/usr/bin/env bash
# Text-video retrieval on VATEX: each of a video's 10 captions is a training pair or a query.
# Values change as in msrvtt.sh; dataloaders/vatex.py lists the files that DATA_PATH must hold.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/vatex}
data_path=${data_path:-$DATA_PATH}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stop}

# STOP's values, 64 pairs on each of 8 GPUs. CLIP4Clip does not report VATEX; its values are those for MSR-VTT.
case $method in
    clip4clip) epochs=${epochs:-5} batch_size=${batch_size:-128} lr=${lr:-1e-4} ;;
    *) epochs=${epochs:-10} batch_size=${batch_size:-512} lr=${lr:-5e-3} ;;
esac
output_dir=${output_dir:-runs/vatex_$method}

train_retrieval \
    --datatype vatex --expand_msrvtt_sentences --data_path "$data_path" --features_path "$features_path" \
    --output_dir "$output_dir" "$@"
