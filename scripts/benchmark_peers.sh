#!/usr/bin/env bash
# Compares this project with well-known libraries in decoding, towers, training steps, metrics and caches.
# One thread, at most 15 minutes; needs no data and no weights. Libraries that are not installed are named and left out.
#   pip install -r requirements-benchmark.txt
#   bash scripts/benchmark_peers.sh
#   bash scripts/benchmark_peers.sh --only decoding,caches --repeats 21
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
cd "$repository"
export OMP_NUM_THREADS=1
exec "$PYTHON" -m benchmarks.peers "$@"
