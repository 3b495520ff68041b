#!/usr/bin/env bash
# Action recognition on HMDB51: trains on one of its three splits and evaluates on that split's test videos.
# The files that DATA_PATH must hold are listed in docs/recognition.md.
# Edit the values below, set them from outside, or add flags:
#   split=2 bash scripts/hmdb51.sh
#   shots=16 method=vpt bash scripts/hmdb51.sh --label_smoothing 0.1
#   mode=eval method=clip4clip bash scripts/hmdb51.sh      (zero-shot CLIP)
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

DATA_PATH=${DATA_PATH:-data/hmdb51}
data_path=${data_path:-$DATA_PATH}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stop}
few_videos_values

# The values for all videos and classes.
epochs=${epochs:-30}
batch_size=${batch_size:-64}
test_views=${test_views:-3x1}
output_dir=${output_dir:-runs/hmdb51_$method$variant}

train_recognition \
    --datatype hmdb51 --data_path "$data_path" --features_path "$features_path" \
    --epochs "$epochs" --batch_size "$batch_size" --test_views "$test_views" \
    --output_dir "$output_dir" "$@"
