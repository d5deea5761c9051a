#!/usr/bin/env bash
#SBATCH --job-name=cimrl
#SBATCH --array=0-4
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=cimrl-%A_%a.out
# One SLURM task per seed, each in a folder of its own: the array's index is the seed.
#
#   sbatch launch/slurm_array.sh --config configs/digits.py
#   sbatch --array=5-9 --time=08:00:00 launch/slurm_array.sh --config configs/digits.py --train.steps 8000
#
# The folders are $ROOT/seed_0, $ROOT/seed_1 ...; ROOT defaults to runs/<name of the array's job>_<its id>. Submit from the repository's folder, with the
# environment active. `--seeds 3,` with its comma is the seed 3 alone; `--seeds 3` would be the seeds 0, 1 and 2. A requeued task resumes by itself
# where train.checkpoint_every is above 0.
set -euo pipefail

index=${SLURM_ARRAY_TASK_ID:?submit this with sbatch, as an array job}
root=${ROOT:-runs/${SLURM_JOB_NAME:-cimrl}_${SLURM_ARRAY_JOB_ID:-local}}
exec "${PYTHON:-python}" -m cimrl_jax.main "$@" --seeds "$index," --workdir "$root/seed_$index"
