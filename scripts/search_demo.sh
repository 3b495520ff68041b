#!/usr/bin/env bash
# From a fresh clone to a search in videos: installs into .venv, draws small videos, indexes and searches them.
# Uses the model that scripts/quickstart.sh trained, if it is there: then it knows left from right.
#   bash scripts/search_demo.sh
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
cd "$repository"
source scripts/_install.sh
given=${PYTHON:-}
install requirements.txt
# Searching works without the rest of the packages, so a machine without a network goes on.
if ! PYTHON=$given PIP_RETRIES=0 install requirements-search.txt; then
    echo "Going on without faiss and the page's server, which could not be installed."
fi

"$PYTHON" -m search demo "$@"
