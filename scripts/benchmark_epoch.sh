#!/usr/bin/env bash
# Times an epoch of MSR-VTT's size and an evaluation on this machine, from a raw frame cache of made clips.
# Needs no data and no weights; uses a GPU if there is one.
#   bash scripts/benchmark_epoch.sh
#   bash scripts/benchmark_epoch.sh --method stop --steps 200 --compile
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
cd "$repository"
exec "$PYTHON" -m benchmarks.epoch "$@"
