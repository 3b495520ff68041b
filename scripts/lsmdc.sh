#!/usr/bin/env bash
# Text-video retrieval on LSMDC. Values change as in msrvtt.sh; dataloaders/lsmdc.py says which files DATA_PATH
# must hold.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/lsmdc}
data_path=${data_path:-$DATA_PATH}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stop}
pretrained_clip_name=${pretrained_clip_name:-ViT-B/32}
pretrained_dir=${pretrained_dir:-pretrained}

# CLIP4Clip's values, and for prompts DGL's, 64 pairs on each of 8 GPUs: none are published for STOP.
case $method in
    clip4clip)
        epochs=${epochs:-5} batch_size=${batch_size:-128} lr=${lr:-1e-4}
        frame_sampling=${frame_sampling:-uniform} feature_framerate=${feature_framerate:-1}
        ;;
    *)
        epochs=${epochs:-10} batch_size=${batch_size:-512} lr=${lr:-1e-2}
        frame_sampling=${frame_sampling:-segment} feature_framerate=${feature_framerate:-0}
        ;;
esac
batch_size_val=${batch_size_val:-32}
coef_lr=${coef_lr:-1e-3}
max_words=${max_words:-32}
max_frames=${max_frames:-12}
num_thread_reader=${num_thread_reader:-4}
select_on=${select_on:-last}
seed=${seed:-42}
output_dir=${output_dir:-runs/lsmdc_$method}

EXEC=exec launch main_task_retrieval.py --do_train \
    --datatype lsmdc --expand_msrvtt_sentences --data_path "$data_path" --features_path "$features_path" \
    --method "$method" --pretrained_clip_name "$pretrained_clip_name" --pretrained_dir "$pretrained_dir" \
    --epochs "$epochs" --batch_size "$batch_size" --batch_size_val "$batch_size_val" \
    --lr "$lr" --coef_lr "$coef_lr" \
    --max_words "$max_words" --max_frames "$max_frames" \
    --frame_sampling "$frame_sampling" --feature_framerate "$feature_framerate" \
    --num_thread_reader "$num_thread_reader" --select_on "$select_on" --seed "$seed" \
    --output_dir "$output_dir" "$@"
