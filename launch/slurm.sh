#!/usr/bin/env bash
#SBATCH --job-name=cimrl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=4G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=cimrl-%j.out
# One run over several machines: a process per GPU, which share the batches and the members of a sweep.
#
#   sbatch launch/slurm.sh --config configs/covid_cxr.py --workdir /where/all/nodes/see/it
#   sbatch --nodes=1 --ntasks-per-node=8 launch/slurm.sh --config configs/digits.py --seeds 64 --workdir ...
#
# Submit from the repository's folder, with the environment active. Two minutes before the time is up every process gets SIGTERM and leaves a
# checkpoint; the same command, or the requeued job, goes on from there, on as many processes as it then has.
set -euo pipefail

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # which newer versions do not hand on by themselves
exec srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m cimrl_jax.main "$@" --train.distributed
