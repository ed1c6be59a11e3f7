#!/bin/bash
# Embed a corpus with 16 processes that share one output folder; without Ray.
#
#     CORPUS=data OUTPUT=vectors MODEL=Qwen/Qwen3-0.6B sbatch examples/slurm_array.sh
#
# Each task takes what nobody has in hand. One that is stopped loses the shard at hand, and others take that over.
# When time runs out, submit the same again: it goes on where it was.
#SBATCH --job-name=embed
#SBATCH --array=0-15
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --time=08:00:00
#SBATCH --requeue

set -euo pipefail
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
# Nodes often have no network: load the model once where there is one.
export HF_HUB_OFFLINE=1

valuembed embed "${CORPUS:-data}" --output "${OUTPUT:-vectors}" \
    --model "${MODEL:-bundled}" --dtype bfloat16 --precision float16
