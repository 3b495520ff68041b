#!/usr/bin/env bash
# Mug-STAN on MSR-VTT with a clean schedule (docs/stan.md): stan_msrvtt.sh, whose values it has, with another method.
#   bash scripts/mug_stan_msrvtt.sh
#   init_model=CHECKPOINT bash scripts/mug_stan_msrvtt.sh --mug full
set -euo pipefail
export method=${method:-mug_stan}
exec bash "$(dirname "$0")/stan_msrvtt.sh" "$@"
