#!/usr/bin/env bash
# Action recognition on Something-Something V2: trains on its training and evaluates on its validation videos.
# The files that DATA_PATH must hold are listed in docs/recognition.md. Flips exchange the labels of left and right.
# Edit the values below, set them from outside, or add flags:
#   method=vpt bash scripts/ssv2.sh
#   shots=16 bash scripts/ssv2.sh
#   classes=base bash scripts/ssv2.sh --seed 1                 (base-to-novel)
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/ssv2}
data_path=${data_path:-$DATA_PATH}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stop}
few_videos_values

# The values for all videos and classes.
epochs=${epochs:-20}
batch_size=${batch_size:-128}
test_views=${test_views:-1x3}
output_dir=${output_dir:-runs/ssv2_$method$variant}

train_recognition \
    --datatype ssv2 --data_path "$data_path" --features_path "$features_path" \
    --epochs "$epochs" --batch_size "$batch_size" --test_views "$test_views" \
    --output_dir "$output_dir" "$@"
