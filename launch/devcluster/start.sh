#!/usr/bin/env bash
# Start a real SLURM of several nodes on this one machine, for tests and for trying things out; a second call only checks it.
# Needs neither systemd nor cgroups, and touches nothing outside its folder. Prints the line that makes a shell use it.
#   DEVCLUSTER        folder of its files                        runs/devcluster
#   DEVCLUSTER_NODES  how many nodes                             2
#   DEVCLUSTER_CPUS   CPUs of each node, as SLURM counts them    2
#   DEVCLUSTER_PORT   first of the ports that it takes           17000
set -euo pipefail

lab=$(realpath -m "${DEVCLUSTER:-runs/devcluster}")
nodes=${DEVCLUSTER_NODES:-2} cpus=${DEVCLUSTER_CPUS:-2} port=${DEVCLUSTER_PORT:-17000}
host=$(hostname -s)
export SLURM_CONF=$lab/slurm.conf

missing=()
for command in munged munge slurmctld slurmd sbatch scontrol; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || missing+=("$command")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "devcluster: not installed: ${missing[*]}; on Debian: apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge" >&2
    exit 1
fi
PATH=$PATH:/usr/sbin:/sbin

alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }  # by the file that holds a process id
wait_for() {  # wait_for SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$end" ]; then
            echo "devcluster: waited too long for: $* (logs are in $lab)" >&2
            return 1
        fi
        sleep 0.1
    done
}

mkdir -p "$lab"/{state,spool,munge}
chmod 755 "$lab" "$lab/munge"

# A key and a socket of its own: an installed munge is left alone.
if ! alive "$lab/munge/pid"; then
    if [ ! -s "$lab/munge/key" ]; then
        (umask 077 && head -c 128 /dev/urandom > "$lab/munge/key")
    fi
    munged --force --num-threads=2 --key-file="$lab/munge/key" --socket="$lab/munge/socket" --pid-file="$lab/munge/pid" \
        --log-file="$lab/munge/log" --seed-file="$lab/munge/seed" 2>>"$lab/munge/warnings"
fi
wait_for 10 sh -c "munge -n -S '$lab/munge/socket' | unmunge -S '$lab/munge/socket'"

# main: where jobs go by default, and from where a job in `high` drives them: SIGUSR1 where the job asked for a signal, and 20 s to save.
# SlurmdTimeout and cred_expire are short so that a lost node is seen, and a requeued job starts again, in seconds.
{
    cat <<CONF
ClusterName=devcluster
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$lab/munge/socket,cred_expire=5
StateSaveLocation=$lab/state
SlurmdSpoolDir=$lab/spool/%n
SlurmctldPidFile=$lab/slurmctld.pid
SlurmdPidFile=$lab/slurmd.%n.pid
SlurmctldLogFile=$lab/slurmctld.log
SlurmdLogFile=$lab/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SlurmdTimeout=10
KillWait=10
MinJobAge=3600
CompleteWait=0
EnforcePartLimits=ALL
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
CONF
    for number in $(seq "$nodes"); do
        mkdir -p "$lab/spool/n$number"
        echo "NodeName=n$number NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + number)) CPUs=$cpus RealMemory=4000 State=UNKNOWN"
    done
    echo "PartitionName=main Nodes=n[1-$nodes] Default=YES MaxTime=1-0 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20"
    echo "PartitionName=high Nodes=n[1-$nodes] MaxTime=1-0 State=UP PriorityTier=10 PreemptMode=OFF"
} > "$lab/slurm.conf.new"
mv "$lab/slurm.conf.new" "$lab/slurm.conf"
# SLURM before 23.02 cannot do without a cgroup plugin, but never loads it for these settings.
case $(slurmd -V) in
    *\ 2[0-2].*) echo "CgroupPlugin=cgroup/v1" ;;
    *) echo "CgroupPlugin=disabled" ;;
esac > "$lab/cgroup.conf"

alive "$lab/slurmctld.pid" || slurmctld
for number in $(seq "$nodes"); do
    alive "$lab/slurmd.n$number.pid" || slurmd -N "n$number"
done
ready() { [ "$(sinfo --noheader --partition=main --states=idle,mix,alloc --format=%D)" = "$nodes" ]; }
wait_for 30 scontrol ping
wait_for 30 ready
echo "export SLURM_CONF=$lab/slurm.conf"
