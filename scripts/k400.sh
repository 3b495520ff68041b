#!/usr/bin/env bash
# Action recognition on Kinetics-400: trains on its training videos and evaluates on its validation videos.
# With datatype=kinetics600 it does so on Kinetics-600, which is in data/k600 unless DATA_PATH names another folder.
# The files that DATA_PATH must hold are listed in docs/recognition.md; --allow_missing N accepts gaps.
# Edit the values below, set them from outside, or add flags:
#   bash scripts/k400.sh --allow_missing 2000 --frame_cache data/k400/frames
#   shots=16 bash scripts/k400.sh
#   datatype=kinetics600 mode=eval bash scripts/k400.sh --init_model runs/k400_stop/last.safetensors
set -euo pipefail
source "$(dirname "$0")/_launch.sh"

datatype=${datatype:-kinetics400}
name=${datatype/inetics/} # k400 or k600
DATA_PATH=${DATA_PATH:-data/$name}
data_path=${data_path:-$DATA_PATH}
features_path=${features_path:-$DATA_PATH/videos}

method=${method:-stop}
few_videos_values

# The values for all videos and classes.
epochs=${epochs:-10}
batch_size=${batch_size:-256}
test_views=${test_views:-4x3}
output_dir=${output_dir:-runs/${name}_$method$variant}

train_recognition \
    --datatype "$datatype" --data_path "$data_path" --features_path "$features_path" \
    --epochs "$epochs" --batch_size "$batch_size" --test_views "$test_views" \
    --output_dir "$output_dir" "$@"
