#!/usr/bin/env bash
# STAN on MSR-VTT with a clean schedule: a warm-up of 10 % and one cosine to 0 over 20 epochs (docs/stan.md).
# Values change as in msrvtt.sh; init_model=CHECKPOINT starts from weights after post-pretraining. mug_stan_msrvtt.sh
# runs this script too.
# Learning rates and decay are STAN's paper's, temperature and crops the release's; see also stan_msrvtt_released.sh.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/msrvtt}
train_csv=${train_csv:-$DATA_PATH/MSRVTT_train.9k.csv}
val_csv=${val_csv:-$DATA_PATH/MSRVTT_JSFUSION_test.csv}
data_path=${data_path:-$DATA_PATH/MSRVTT_data.json}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stan}
init_model=${init_model:-}

epochs=${epochs:-20}
batch_size=${batch_size:-128}
lr=${lr:-2e-5}
coef_lr=${coef_lr:-0.1}  # CLIP learns at 2e-6
weight_decay=${weight_decay:-0.02}
max_grad_norm=${max_grad_norm:-5}
tau=${tau:-0.01}
max_words=${max_words:-32}
max_frames=${max_frames:-12}
crop_scale=${crop_scale:-0.08}
output_dir=${output_dir:-runs/msrvtt_$method}

train_retrieval \
    --datatype msrvtt --expand_msrvtt_sentences \
    --train_csv "$train_csv" --val_csv "$val_csv" --data_path "$data_path" --features_path "$features_path" \
    ${init_model:+--init_model "$init_model"} --tau "$tau" \
    --weight_decay "$weight_decay" --max_grad_norm "$max_grad_norm" \
    --max_words "$max_words" --max_frames "$max_frames" --crop_scale "$crop_scale" \
    --output_dir "$output_dir" "$@"
