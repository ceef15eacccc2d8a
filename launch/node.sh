#!/usr/bin/env bash
# One node of a training, started by srun with one task per node: node.sh RECIPE [options of `speechkd train`].
# Every word goes on as it is; nothing is evaluated.
set -u

# SLURM sends USR1 to the whole step before a time limit. It must not end Python before `speechkd train` listens to it.
trap '' USR1

cd -- "${SPEECHKD_PROJECT:-$(dirname -- "$0")/..}" || exit 2
exec "${SPEECHKD_PYTHON:-python}" -m speechkd train "$@" --node-rank "${SLURM_NODEID:-0}"
