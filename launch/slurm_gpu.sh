#!/usr/bin/env bash
#SBATCH --job-name=uae-jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=uae-%j.log
# One process a node with all of its GPUs:
#
#   sbatch launch/slurm_gpu.sh --config=configs/umm1.py:qwen3b-sd35m \
#     --workdir=/shared/runs/first
#
# Slurm sends SIGTERM three minutes before the end; the run saves, and the job
# puts itself back into the queue. The same command resumes.
set -uo pipefail

: "${VENV:=$HOME/venv}"

srun --kill-on-bad-exit=0 "$VENV/bin/python" -m uae_jax.main "$@" &
job=$!
trap 'kill -TERM "$job" 2>/dev/null' TERM
wait "$job"
code=$?
if ((code > 128)) && kill -0 "$job" 2>/dev/null; then
  wait "$job" # the trap ended the first wait
  code=$?
fi
# 143: stopped by SIGTERM and saved; 3: a node was lost.
if [[ $code == 143 || $code == 3 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
