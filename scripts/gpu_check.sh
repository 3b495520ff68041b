#!/usr/bin/env bash
# Runs everything that needs a GPU in at most nine minutes: tests, kernels, training steps, an epoch, growth.
# Prints one line per check and writes results/gpu_check.json; needs no network, data or weights.
#   bash scripts/gpu_check.sh
#   bash scripts/gpu_check.sh --only "growth,epoch and evaluation"
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
cd "$repository"
exec "$PYTHON" -m benchmarks.gpu_check "$@"
