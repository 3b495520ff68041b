#!/usr/bin/env bash
# Action recognition on UCF101: trains on one of its three splits and evaluates on that split's test videos.
# DATA_PATH holds the official files (docs/recognition.md) or those of preprocess/make_moving_actions.py.
# Edit the values below, set them from outside, or add flags:
#   split=2 bash scripts/ucf101.sh
#   shots=16 method=vpt bash scripts/ucf101.sh --label_smoothing 0.1
#   classes=base bash scripts/ucf101.sh                        (base-to-novel)
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/ucf101}
data_path=${data_path:-$DATA_PATH}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stop}
few_videos_values

# The values for all videos and classes.
epochs=${epochs:-20}
batch_size=${batch_size:-64}
test_views=${test_views:-3x1}
output_dir=${output_dir:-runs/ucf101_$method$variant}

train_recognition \
    --datatype ucf101 --data_path "$data_path" --features_path "$features_path" \
    --epochs "$epochs" --batch_size "$batch_size" --test_views "$test_views" \
    --output_dir "$output_dir" "$@"
