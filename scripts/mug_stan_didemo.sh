#!/usr/bin/env bash
# Mug-STAN on DiDeMo, paragraphs against whole videos: a warm-up of 10 % and one cosine to 0 over 20 epochs.
# Values change as in msrvtt.sh; method=stan works too. dataloaders/didemo.py lists the files that DATA_PATH must hold.
# Frames, words, temperature, decay and squares are the release's: frames have a short side of 256 before they are cut.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/didemo}
data_path=${data_path:-$DATA_PATH}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-mug_stan}
init_model=${init_model:-}

epochs=${epochs:-20}
batch_size=${batch_size:-128}
batch_size_val=${batch_size_val:-4}
lr=${lr:-2e-5}
coef_lr=${coef_lr:-0.1}  # CLIP learns at 2e-6
weight_decay=${weight_decay:-0.01}
max_grad_norm=${max_grad_norm:-5}
tau=${tau:-0.05}
max_words=${max_words:-77}
max_frames=${max_frames:-64}
crop_scale=${crop_scale:-0.08}
test_short_side=${test_short_side:-256}
output_dir=${output_dir:-runs/didemo_$method}

train_retrieval \
    --datatype didemo --data_path "$data_path" --features_path "$features_path" \
    ${init_model:+--init_model "$init_model"} --tau "$tau" --activation_checkpointing \
    --weight_decay "$weight_decay" --max_grad_norm "$max_grad_norm" \
    --max_words "$max_words" --max_frames "$max_frames" \
    --crop_scale "$crop_scale" --test_short_side "$test_short_side" \
    --output_dir "$output_dir" "$@"
