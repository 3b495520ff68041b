#!/usr/bin/env bash
# STDD on Kinetics-400 with the settings of its release (https://github.com/Mia-YatingYu/STDD), ViT-B/16.
# The values below can be set from outside; docs/stdd.md says where they come from. Before you run it:
#   - Make the bag of prompts once with preprocess/text_features.py and pass it:
#       classifier=bag text_features=data/k400/text_features.safetensors bash scripts/stdd_k400.sh
#     Without it, classes are scored with the mean of their texts.
#   - The release has a batch of 8 on each of 4 GPUs. Here batch_size is the global one, on any number of GPUs.
#   - The release's distillation has no gradient; distill=intended is what the paper says.
#   - Average the epochs afterwards, as the release does: see `python -m engine.average --help`.
#   - Without a GPU set precision=fp32.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/k400}
data_path=${data_path:-$DATA_PATH}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stdd}
[ "$method" = stdd ] || in_vain "is an option of stdd, and not of method=$method" distill distill_ratio
pretrained_clip_name=${pretrained_clip_name:-ViT-B/16}
distill=${distill:-none}
distill_ratio=${distill_ratio:-2.0}
few_videos_values

epochs=${epochs:-22}
batch_size=${batch_size:-32}
lr=${lr:-3.33e-6}
coef_lr=${coef_lr:-1}
weight_decay=${weight_decay:-0.01}
adam_beta2=${adam_beta2:-0.999}
adam_eps=${adam_eps:-1e-8}
schedule=${schedule:-one_percent}
warmup_proportion=${warmup_proportion:-0.0909090909}  # 2 of 22 epochs
max_grad_norm=${max_grad_norm:-1.0}
precision=${precision:-fp16}
precision_val=${precision_val:-fp32}
frame_sampling=${frame_sampling:-slowfast}
if [ "$frame_sampling" = slowfast ]; then
    frame_stride=${frame_stride:-16}
fi
frame_transform=${frame_transform:-bilinear}
short_side_max=${short_side_max:-256}
crop_scale=${crop_scale:-1}
flip=${flip:-plain_despite_map}
test_views=${test_views:-3x1}
seed=${seed:-0}
output_dir=${output_dir:-runs/k400_$method$variant}

own_flags=()
if [ "$method" = stdd ]; then
    own_flags=(--no-clamp_logit_scale --distill "$distill" --distill_ratio "$distill_ratio")
fi

train_recognition \
    --datatype kinetics400 --data_path "$data_path" --features_path "$features_path" "${own_flags[@]}" \
    --epochs "$epochs" --batch_size "$batch_size" --test_views "$test_views" --weight_decay "$weight_decay" \
    --adam_beta2 "$adam_beta2" --adam_eps "$adam_eps" --schedule "$schedule" \
    --warmup_proportion "$warmup_proportion" --max_grad_norm "$max_grad_norm" \
    --precision "$precision" --precision_val "$precision_val" ${frame_stride:+--frame_stride "$frame_stride"} \
    --frame_transform "$frame_transform" --short_side_max "$short_side_max" \
    --output_dir "$output_dir" "$@"
