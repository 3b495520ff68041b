#!/usr/bin/env bash
# STAN as its authors released it (https://github.com/farewellthree/STAN), on MSR-VTT by their protocol.
# Values change as in msrvtt.sh; pretrained_clip_name=ViT-B/16 or ViT-L/14 takes the release's values for it.
# docs/stan.md says what is wrong in the release, and what differs here all the same. Before you run it:
#   - The release has 16 pairs on each of 8 GPUs (ViT-B/16: 8 on each of 16). Here batch_size is the global one. Its
#     gradient is divided by the number of GPUs, and then clipped at 5: on N GPUs pass max_grad_norm as 40 / N (80 / N).
#   - Without a GPU set precision=fp32: the backward pass of fp16 convolutions takes 40 times as long on a CPU.
#   - Its 10 epochs are its warm-up: the learning rate never falls. The reported epoch is the best ON THE TEST SPLIT.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/msrvtt}
train_csv=${train_csv:-$DATA_PATH/MSRVTT_train.9k.csv}
val_csv=${val_csv:-$DATA_PATH/MSRVTT_JSFUSION_test.csv}
data_path=${data_path:-$DATA_PATH/MSRVTT_data.json}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stan}
pretrained_clip_name=${pretrained_clip_name:-ViT-B/32}
pretrained_dir=${pretrained_dir:-pretrained}

# The release has these temperatures.
case $pretrained_clip_name in
    ViT-B/16) tau=${tau:-0.02} ;;
    *) tau=${tau:-0.01} ;;
esac
lr=${lr:-2e-5}  # of what is new; CLIP learns at 2e-6
weight_decay=${weight_decay:-0.05}
coef_lr=${coef_lr:-0.1}
decay_groups=${decay_groups:-released}
adam_eps=${adam_eps:-1e-8}
epochs=${epochs:-10}
schedule=${schedule:-periodic_cosine}
warmup_proportion=${warmup_proportion:-1}  # 10 epochs
cosine_epochs=${cosine_epochs:-4.5}
loss=${loss:-summed_info_nce}
gather_gradient=${gather_gradient:-own}
max_grad_norm=${max_grad_norm:-5}
batch_size=${batch_size:-128}
batch_size_val=${batch_size_val:-16}
precision=${precision:-fp16}
precision_val=${precision_val:-fp32}
max_words=${max_words:-32}
max_frames=${max_frames:-12}
frame_sampling=${frame_sampling:-stan}
feature_framerate=${feature_framerate:-0}
frame_transform=${frame_transform:-bilinear}
train_short_side=${train_short_side:-256}
crop_scale=${crop_scale:-0.08}
num_thread_reader=${num_thread_reader:--1}
select_on=${select_on:-test}
seed=${seed:-42}
output_dir=${output_dir:-runs/msrvtt_released_$method}

EXEC="exec" launch main_task_retrieval.py --do_train \
    --datatype msrvtt --expand_msrvtt_sentences \
    --train_csv "$train_csv" --val_csv "$val_csv" --data_path "$data_path" --features_path "$features_path" \
    --method "$method" --tau "$tau" --decay_groups "$decay_groups" \
    --pretrained_clip_name "$pretrained_clip_name" --pretrained_dir "$pretrained_dir" \
    --epochs "$epochs" --batch_size "$batch_size" --batch_size_val "$batch_size_val" \
    --lr "$lr" --coef_lr "$coef_lr" --weight_decay "$weight_decay" --adam_eps "$adam_eps" \
    --schedule "$schedule" --warmup_proportion "$warmup_proportion" --cosine_epochs "$cosine_epochs" \
    --loss "$loss" --gather_gradient "$gather_gradient" --max_grad_norm "$max_grad_norm" \
    --precision "$precision" --precision_val "$precision_val" \
    --max_words "$max_words" --max_frames "$max_frames" \
    --frame_sampling "$frame_sampling" --feature_framerate "$feature_framerate" --frame_transform "$frame_transform" \
    --train_short_side "$train_short_side" --crop_scale "$crop_scale" \
    --num_thread_reader "$num_thread_reader" --select_on "$select_on" --seed "$seed" \
    --output_dir "$output_dir" "$@"
