#!/usr/bin/env bash
# Measures the loader in clips per second, from video files and from the frame caches.
# Reads the videos of the embedded world and made 224-pixel clips; needs no data and no weights.
#   bash scripts/benchmark_data.sh
#   bash scripts/benchmark_data.sh --num_thread_reader 8 --batch_size 128 --output results/benchmark_data.json
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
cd "$repository"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

DATA_PATH=${DATA_PATH:-data/moving_shapes}
"$PYTHON" preprocess/make_moving_shapes.py --output_dir "$DATA_PATH"
exec "$PYTHON" -m benchmarks.data --videos "$DATA_PATH/videos" "$@"
