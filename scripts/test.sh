#!/usr/bin/env bash
# Installs what the tests need into .venv, then runs them in two processes. Arguments go to pytest.
# STOP_REFERENCE names the folder of the reference files; without it the tests that need them are skipped.
#   bash scripts/test.sh                 the default tests, some minutes
#   bash scripts/test.sh -m slow         the slow tests
#   bash scripts/test.sh tests/modules   some of the tests
#   bash scripts/test.sh -n 0            in one process, to see output and where a test hangs
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
source "$repository/scripts/_install.sh"
install requirements-dev.txt

# Two OpenMP threads on busy cores are slower than one.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
cd "$repository"
exec "$PYTHON" -m pytest --numprocesses 2 "$@"
