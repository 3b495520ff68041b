#!/usr/bin/env bash
# Measures the training step of every method against this machine's ceilings and against bare frozen CLIP.
# Needs no data and no weights; uses a GPU if there is one.
#   bash scripts/benchmark.sh
#   bash scripts/benchmark.sh --only stop,dgl --batch_size 8 --frames 12 --precision bf16
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
cd "$repository"
exec "$PYTHON" -m benchmarks.methods "$@"
