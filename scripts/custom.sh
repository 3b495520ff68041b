#!/usr/bin/env bash
# Text-video retrieval on your own videos, listed in a csv or jsonl file: dataloaders/custom.py says how. Values change
# as in msrvtt.sh. One list with a column `split` serves as train_csv and val_csv.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/custom}
train_csv=${train_csv:-$DATA_PATH/train.csv}
val_csv=${val_csv:-$DATA_PATH/test.csv}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stop}
pretrained_clip_name=${pretrained_clip_name:-ViT-B/32}
pretrained_dir=${pretrained_dir:-pretrained}

# The values of MSR-VTT.
case $method in
    clip4clip)
        epochs=${epochs:-5} batch_size=${batch_size:-128} lr=${lr:-1e-4}
        frame_sampling=${frame_sampling:-uniform} feature_framerate=${feature_framerate:-1}
        ;;
    *)
        epochs=${epochs:-5} batch_size=${batch_size:-128} lr=${lr:-1e-3}
        frame_sampling=${frame_sampling:-segment} feature_framerate=${feature_framerate:-0}
        ;;
esac
batch_size_val=${batch_size_val:-16}
coef_lr=${coef_lr:-1e-3}
max_words=${max_words:-32}
max_frames=${max_frames:-12}
num_thread_reader=${num_thread_reader:-4}
select_on=${select_on:-last}
seed=${seed:-42}
output_dir=${output_dir:-runs/custom_$method}

EXEC=exec launch main_task_retrieval.py --do_train \
    --datatype custom --expand_msrvtt_sentences \
    --train_csv "$train_csv" --val_csv "$val_csv" --features_path "$features_path" \
    --method "$method" --pretrained_clip_name "$pretrained_clip_name" --pretrained_dir "$pretrained_dir" \
    --epochs "$epochs" --batch_size "$batch_size" --batch_size_val "$batch_size_val" \
    --lr "$lr" --coef_lr "$coef_lr" \
    --max_words "$max_words" --max_frames "$max_frames" \
    --frame_sampling "$frame_sampling" --feature_framerate "$feature_framerate" \
    --num_thread_reader "$num_thread_reader" --select_on "$select_on" --seed "$seed" \
    --output_dir "$output_dir" "$@"
