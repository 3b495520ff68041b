#!/usr/bin/env bash
# STAN on ActivityNet Captions, paragraphs against whole videos, evaluated on val_1.
# Values change as in msrvtt.sh; method=mug_stan works too. dataloaders/activitynet.py lists the files of DATA_PATH.
# Neither the paper nor the release has values for it; these are DiDeMo's, whose task is the same.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/activitynet}
data_path=${data_path:-$DATA_PATH}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stan}
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
output_dir=${output_dir:-runs/activitynet_$method}

train_retrieval \
    --datatype activitynet --data_path "$data_path" --features_path "$features_path" \
    ${init_model:+--init_model "$init_model"} --tau "$tau" --activation_checkpointing \
    --weight_decay "$weight_decay" --max_grad_norm "$max_grad_norm" \
    --max_words "$max_words" --max_frames "$max_frames" --crop_scale "$crop_scale" \
    --output_dir "$output_dir" "$@"
