#!/usr/bin/env bash
# STOP as its authors released it (https://github.com/zhoujiahuan1991/CVPR2025-STOP), on MSR-VTT by their protocol.
# Values change as in msrvtt.sh; method=dgl works too. Before you run it:
#   - Re-encode the videos to 3 frames per second and a short side of 224 pixels; this script only crops them:
#       python preprocess/compress_video.py --input_root $DATA_PATH/videos --output_root $DATA_PATH/videos_3fps_224
#   - The authors use a batch of 32 on each of 4 GPUs. The model normalises frame weights over the batch of a GPU, so a
#     batch of 128 on another number of GPUs is another model. NGPU=4 follows the authors.
#   - Without a GPU set precision=fp32: the backward pass of fp16 convolutions takes 40 times as long on a CPU.
#   - The reported epoch is the best ON THE TEST SPLIT, as in their code; select_on=last selects nothing.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/msrvtt}
train_csv=${train_csv:-$DATA_PATH/MSRVTT_train.9k.csv}
val_csv=${val_csv:-$DATA_PATH/MSRVTT_JSFUSION_test.csv}
data_path=${data_path:-$DATA_PATH/MSRVTT_data.json}
features_path=${features_path:-$DATA_PATH/videos_3fps_224}

method=${method:-stop_released}
case $method in
    stop_released | dgl)
        [ -z "${method_flags:-}" ] || in_vain "is not read beside method_flags, which can have it" shared_latent_space
        method_flags=${method_flags:---shared_latent_space ${shared_latent_space:-transformer}}
        ;;
    *)
        in_vain "is an option of stop_released and dgl, and not of method=$method" shared_latent_space
        method_flags=${method_flags:-}
        ;;
esac
read -ra own_flags <<<"$method_flags"
pretrained_clip_name=${pretrained_clip_name:-ViT-B/32}
pretrained_dir=${pretrained_dir:-pretrained}

epochs=${epochs:-5}
batch_size=${batch_size:-128}
batch_size_val=${batch_size_val:-16}
lr=${lr:-1e-3}
coef_lr=${coef_lr:-5e-4}
weight_decay=${weight_decay:-0.2}
warmup_proportion=${warmup_proportion:-0.1}
schedule=${schedule:-released}
max_grad_norm=${max_grad_norm:-1.0}
gather_gradient=${gather_gradient:-own}
precision=${precision:-fp16}
precision_val=${precision_val:-fp32}
max_words=${max_words:-32}
max_frames=${max_frames:-12}
frame_sampling=${frame_sampling:-released}
feature_framerate=${feature_framerate:-0}
frame_transform=${frame_transform:-crop}
num_thread_reader=${num_thread_reader:--1}
select_on=${select_on:-test}
seed=${seed:-42}
output_dir=${output_dir:-runs/msrvtt_released_$method}

EXEC="exec" launch main_task_retrieval.py --do_train \
    --datatype msrvtt --expand_msrvtt_sentences \
    --train_csv "$train_csv" --val_csv "$val_csv" --data_path "$data_path" --features_path "$features_path" \
    --method "$method" "${own_flags[@]}" \
    --pretrained_clip_name "$pretrained_clip_name" --pretrained_dir "$pretrained_dir" \
    --epochs "$epochs" --batch_size "$batch_size" --batch_size_val "$batch_size_val" \
    --lr "$lr" --coef_lr "$coef_lr" --weight_decay "$weight_decay" \
    --warmup_proportion "$warmup_proportion" --schedule "$schedule" \
    --max_grad_norm "$max_grad_norm" --gather_gradient "$gather_gradient" \
    --precision "$precision" --precision_val "$precision_val" \
    --max_words "$max_words" --max_frames "$max_frames" \
    --frame_sampling "$frame_sampling" --feature_framerate "$feature_framerate" --frame_transform "$frame_transform" \
    --num_thread_reader "$num_thread_reader" --select_on "$select_on" --seed "$seed" \
    --output_dir "$output_dir" "$@"
