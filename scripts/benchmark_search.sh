#!/usr/bin/env bash
# Measures the engines of the search: time and recall@10, for texts and for clips apart, on made embeddings.
# Needs no data and no weights, but faiss and Qdrant's client: pip install -r requirements-search.txt qdrant-client
#   bash scripts/benchmark_search.sh                                    # 100,000 and 1,000,000 windows
#   bash scripts/benchmark_search.sh --windows 10000 --only exact,ivf
#   bash scripts/benchmark_search.sh --only exact,qdrant --qdrant qdrant://localhost
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
cd "$repository"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m benchmarks.search "$@"
