#!/usr/bin/env bash
# Text-video retrieval on MSR-VTT: trains on the 9k split and evaluates on the 1k-A test split.
# The files that DATA_PATH must hold come from preprocess/download_msrvtt.sh.
# Edit the values below, set them from outside, or add flags:
#   bash scripts/msrvtt.sh
#   lr=1e-5 method=vpt bash scripts/msrvtt.sh --max_frames 8
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/msrvtt}
train_csv=${train_csv:-$DATA_PATH/MSRVTT_train.9k.csv}
val_csv=${val_csv:-$DATA_PATH/MSRVTT_JSFUSION_test.csv}
data_path=${data_path:-$DATA_PATH/MSRVTT_data.json}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stop}
pretrained_clip_name=${pretrained_clip_name:-ViT-B/32}
pretrained_dir=${pretrained_dir:-pretrained}

epochs=${epochs:-5}
batch_size=${batch_size:-128}
batch_size_val=${batch_size_val:-16}
coef_lr=${coef_lr:-1e-3}
max_words=${max_words:-32}
max_frames=${max_frames:-12}
# Published learning rates and samplings: full fine-tuning at 1 frame per second, prompts on videos re-encoded to 3.
case $method in
    clip4clip) lr=${lr:-1e-4} frame_sampling=${frame_sampling:-uniform} feature_framerate=${feature_framerate:-1} ;;
    *) lr=${lr:-1e-3} frame_sampling=${frame_sampling:-segment} feature_framerate=${feature_framerate:-0} ;;
esac
num_thread_reader=${num_thread_reader:--1}
select_on=${select_on:-last}
seed=${seed:-42}
output_dir=${output_dir:-runs/msrvtt_$method}

EXEC="exec" launch main_task_retrieval.py --do_train \
    --datatype msrvtt --expand_msrvtt_sentences \
    --train_csv "$train_csv" --val_csv "$val_csv" --data_path "$data_path" --features_path "$features_path" \
    --method "$method" --pretrained_clip_name "$pretrained_clip_name" --pretrained_dir "$pretrained_dir" \
    --epochs "$epochs" --batch_size "$batch_size" --batch_size_val "$batch_size_val" \
    --lr "$lr" --coef_lr "$coef_lr" \
    --max_words "$max_words" --max_frames "$max_frames" \
    --frame_sampling "$frame_sampling" --feature_framerate "$feature_framerate" \
    --num_thread_reader "$num_thread_reader" --select_on "$select_on" --seed "$seed" \
    --output_dir "$output_dir" "$@"
