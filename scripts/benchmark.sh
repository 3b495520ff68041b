#!/usr/bin/env bash
# What a training step of every method costs on this machine, against its own ceilings and against bare frozen CLIP.
# Needs no data and no weights; on a GPU if there is one.
#   bash scripts/benchmark.sh
#   bash scripts/benchmark.sh --only stop,dgl --batch_size 8 --frames 12 --precision bf16
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
cd "$repository"
exec "$PYTHON" -m benchmarks.methods "$@"
