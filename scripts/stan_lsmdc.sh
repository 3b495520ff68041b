#!/usr/bin/env bash
# STAN on LSMDC with a clean schedule: a warm-up of 10 % and one cosine to 0 over 20 epochs.
# Values change as in msrvtt.sh; method=mug_stan works too. dataloaders/lsmdc.py lists the files of DATA_PATH.
# Learning rates, decay and temperature are the release's.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/lsmdc}
data_path=${data_path:-$DATA_PATH}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stan}
init_model=${init_model:-}

# The release has other values for Mug-STAN.
case $method in
    mug_stan) lr=${lr:-1e-5} coef_lr=${coef_lr:-0.2} weight_decay=${weight_decay:-0.1} tau=${tau:-0.03} ;;
    *) lr=${lr:-1e-5} coef_lr=${coef_lr:-0.1} weight_decay=${weight_decay:-0.2} tau=${tau:-0.01} ;;
esac
epochs=${epochs:-20}
batch_size=${batch_size:-128}
max_grad_norm=${max_grad_norm:-5}
max_words=${max_words:-32}
max_frames=${max_frames:-12}
crop_scale=${crop_scale:-0.08}
output_dir=${output_dir:-runs/lsmdc_$method}

train_retrieval \
    --datatype lsmdc --expand_msrvtt_sentences --data_path "$data_path" --features_path "$features_path" \
    ${init_model:+--init_model "$init_model"} --tau "$tau" \
    --weight_decay "$weight_decay" --max_grad_norm "$max_grad_norm" \
    --max_words "$max_words" --max_frames "$max_frames" --crop_scale "$crop_scale" \
    --output_dir "$output_dir" "$@"
