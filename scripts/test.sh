#!/usr/bin/env bash
# All tests, installing what they need into .venv first. Arguments go to pytest:
#   bash scripts/test.sh                 the default run, some minutes
#   bash scripts/test.sh -m slow         the long ones
#   bash scripts/test.sh tests/modules   a part
#   bash scripts/test.sh -n 0            in one process, to see where one hangs or prints; otherwise two share them
# Tests that compare with reference files find them through STOP_REFERENCE and are skipped without it.
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
source "$repository/scripts/_install.sh"
install requirements-dev.txt

# Two OpenMP threads that share busy cores are slower than one.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
cd "$repository"
exec "$PYTHON" -m pytest --numprocesses 2 "$@"
