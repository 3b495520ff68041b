#!/usr/bin/env bash
# An example for Slurm: scripts/msrvtt.sh on 2 machines with 8 GPUs each. Add your partition and account.
# Written from the documentation of Slurm and torchrun.
#   sbatch scripts/slurm.sh --method stop
# Slurm sends SIGTERM before the time limit and before preemption: the run writes a resume point and ends. Submit the
# same line again to continue; after preemption Slurm does so itself. torchrun restarts a process that dies.
#SBATCH --job-name=stop
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
TORCHRUN="--nnodes=$SLURM_NNODES --rdzv_id=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
export TORCHRUN="$TORCHRUN --rdzv_backend=c10d --rdzv_endpoint=$first:29500 --max_restarts=3"
export NGPU=${NGPU:-8}

srun --kill-on-bad-exit=1 bash scripts/msrvtt.sh --resume auto --save_every 200 "$@"
