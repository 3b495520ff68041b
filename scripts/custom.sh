#!/usr/bin/env bash
# Text-video retrieval on your own videos, listed in a csv or jsonl file; dataloaders/custom.py describes it.
# Values change as in msrvtt.sh. One list with a column `split` can be both train_csv and val_csv.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/custom}
train_csv=${train_csv:-$DATA_PATH/train.csv}
val_csv=${val_csv:-$DATA_PATH/test.csv}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stop}

# The values of MSR-VTT.
case $method in
    clip4clip) epochs=${epochs:-5} batch_size=${batch_size:-128} lr=${lr:-1e-4} ;;
    *) epochs=${epochs:-5} batch_size=${batch_size:-128} lr=${lr:-1e-3} ;;
esac
output_dir=${output_dir:-runs/custom_$method}

train_retrieval \
    --datatype custom --expand_msrvtt_sentences \
    --train_csv "$train_csv" --val_csv "$val_csv" --features_path "$features_path" \
    --output_dir "$output_dir" "$@"
