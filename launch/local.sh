#!/usr/bin/env bash
# One machine, all its devices: seeds are spread over them, in one process.
#
#   launch/local.sh --config configs/digits.py
#   launch/local.sh evaluate --workdir runs/digits
#   DEVICES=0,1 launch/local.sh --config configs/digits.py        only these GPUs
#   LOG=runs/digits.log launch/local.sh --config configs/digits.py   in the background, the output in a file
#
# The same command again goes on where a stopped run was.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -z "${DEVICES:-}" ] || export CUDA_VISIBLE_DEVICES=$DEVICES
if [ -n "${LOG:-}" ]; then
  mkdir -p "$(dirname "$LOG")"
  nohup "${PYTHON:-python}" -m cimrl_jax.main "$@" >"$LOG" 2>&1 &
  echo "process $!, output in $LOG"
else
  exec "${PYTHON:-python}" -m cimrl_jax.main "$@"
fi
