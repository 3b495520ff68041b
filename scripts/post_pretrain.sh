#!/usr/bin/env bash
# Post-pretraining on shards of clips with captions, such as WebVid: see preprocess/make_shards.py for making them.
# Then --init_model "$output_dir/last.safetensors" starts any fine-tuning. Values change as in msrvtt.sh.
#   train_shards=FOLDER_OR_URL shard_cache=FOLDER bash scripts/post_pretrain.sh --resume auto
# The test split of MSR-VTT is evaluated at the end, without a video of it trained on. It can be that of the made world.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

train_shards=${train_shards:-data/webvid/shards}
shard_cache=${shard_cache:-}  # an address needs it
shard_cache_gb=${shard_cache_gb:-100}
shard_streams=${shard_streams:-16}  # a multiple of the number of GPUs, whatever it is: the order stays the same
save_every=${save_every:-1000}

DATA_PATH=${DATA_PATH:-data/msrvtt}
val_csv=${val_csv:-$DATA_PATH/MSRVTT_JSFUSION_test.csv}
data_path=${data_path:-$DATA_PATH/MSRVTT_data.json}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stan}

# STAN's release on WebVid-10M has these values for stan and mug_stan: 24 pairs on each of 16 GPUs, half an epoch of
# warm-up. CLIP learns at 4e-6. Its learning rate falls to 0.12 of that, here to 0; it evaluates 12 frames, and 8 here.
epochs=${epochs:-4}
batch_size=${batch_size:-384}
lr=${lr:-4e-5}
coef_lr=${coef_lr:-0.1}
weight_decay=${weight_decay:-0.05}
max_grad_norm=${max_grad_norm:-5}
warmup_proportion=${warmup_proportion:-0.125}
max_words=${max_words:-64}
max_frames=${max_frames:-8}
frame_sampling=${frame_sampling:-segment}
feature_framerate=${feature_framerate:-0}
case $method in
    stan | mug_stan) set -- --tau "${tau:-0.01}" --crop_scale "${crop_scale:-0.08}" "$@" ;;
    *)
        in_vain "reaches stan and mug_stan alone, and the method is $method" tau
        set -- ${crop_scale:+--crop_scale "$crop_scale"} "$@"
        ;;
esac
output_dir=${output_dir:-runs/post_pretrain_$method}

train_retrieval \
    --train_shards "$train_shards" --shard_streams "$shard_streams" \
    ${shard_cache:+--shard_cache "$shard_cache"} --shard_cache_gb "$shard_cache_gb" --save_every "$save_every" \
    --datatype msrvtt --val_csv "$val_csv" --data_path "$data_path" --features_path "$features_path" \
    --weight_decay "$weight_decay" --max_grad_norm "$max_grad_norm" --warmup_proportion "$warmup_proportion" \
    --output_dir "$output_dir" "$@"
