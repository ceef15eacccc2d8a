#!/usr/bin/env bash
# Stop what start.sh started in the folder DEVCLUSTER (runs/devcluster), by its process ids; jobs that still run are cancelled first.
set -euo pipefail
lab=$(realpath -m "${DEVCLUSTER:-runs/devcluster}")
export SLURM_CONF=$lab/slurm.conf

alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

if alive "$lab/slurmctld.pid"; then
    scancel --user="$(id -un)" || true
    for _ in $(seq 100); do
        [ -n "$(squeue --noheader --states=RUNNING,COMPLETING 2>/dev/null)" ] || break
        sleep 0.1
    done
fi
for file in "$lab"/slurmd.*.pid "$lab/slurmctld.pid" "$lab/munge/pid"; do
    alive "$file" || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
done
