#!/bin/bash
# Embed a corpus with Ray inside one SLURM job: a worker for each GPU, replaced when it dies.
#
#     CORPUS=data OUTPUT=vectors MODEL=Qwen/Qwen3-0.6B sbatch examples/slurm_ray.sh
#
# Corpus, output and model are on a file system that all nodes see, and so is the home folder with Ray's token.
#SBATCH --job-name=embed
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00

set -euo pipefail
export RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1
# Ray runs what it is sent: let nobody in without the token.
export RAY_AUTH_MODE=token
ray get-auth-token --generate > /dev/null

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$head:6379"
srun --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --port=6379 --include-dashboard=false --num-cpus=16 --num-gpus=4 --block &
until ray status --address "$address" > /dev/null 2>&1; do sleep 2; done
srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \
    ray start --address="$address" --num-cpus=16 --num-gpus=4 --block &

valuembed embed "${CORPUS:-data}" --output "${OUTPUT:-vectors}" \
    --model "${MODEL:-bundled}" --dtype bfloat16 --precision float16 \
    --engine ray --ray-address "$address" --workers 4:16 --cpus-per-worker 4 --gpus-per-worker 1 --ray-wait 300
