#!/usr/bin/env bash
# tests/slurm_cluster.sh up DIR [CPUS]   starts a Slurm cluster of one node, this machine, in DIR
# tests/slurm_cluster.sh down DIR        ends it, and every job of it
# SLURM_CONF=DIR/slurm.conf makes sbatch, squeue and the others talk to it. It needs root, and
# slurmctld, slurmd and munged; it uses free ports and DIR alone, so that others stay as they are.
set -euo pipefail

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

[ $# -ge 2 ] || fail "usage: $0 up|down DIR [CPUS]"
task=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
export SLURM_CONF="$dir/slurm.conf"
PATH=$PATH:/usr/sbin:/sbin

# Runs a daemon in the foreground of its own session, with its output in a file.
start() {
    local name=$1
    shift
    setsid "$@" >"$dir/$name.log" 2>&1 </dev/null &
    echo $! >"$dir/$name.pid"
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

# Waits, a minute at most, until a command succeeds.
until_true() {
    for _ in $(seq 300); do
        "$@" && return
        sleep 0.2
    done
    tail -n 20 "$dir"/*.log >&2
    fail "this is still not so: $*"
}

idle() { [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; }

up() {
    local cpus=${1:-4}
    chmod 755 "$dir"
    mkdir -p "$dir/state" "$dir/spool"
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
    # Slurm counts the processors of NodeName; with config_overrides there may be more than here are.
    # A job that is queued again waits until its credential has expired.
    cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmUser=root
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmctldPidFile=$dir/slurmctld.own.pid
SlurmdPidFile=$dir/slurmd.own.pid
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=8
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
# A job of the partition "urgent" drives those of "all" out, which have GraceTime to save.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=localhost NodeHostname=$(uname -n | cut -d. -f1) NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=localhost MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
CONF
    start munged munged --foreground --force --key-file="$dir/munge.key" \
        --socket="$dir/munge.socket" --pid-file="$dir/munged.own.pid" \
        --seed-file="$dir/munge.seed" --log-file="$dir/munged.own.log"
    until_true test -S "$dir/munge.socket"
    start slurmctld slurmctld -D -f "$SLURM_CONF"
    start slurmd slurmd -D -f "$SLURM_CONF"
    until_true idle
}

jobless() { [ -z "$(squeue --noheader)" ]; }

down() {
    local name pid
    if timeout 10 sinfo >/dev/null 2>&1; then
        scancel --full --user=root
        until_true jobless
    fi
    # Nothing of it is needed again, so that none has to put itself in order.
    for name in slurmd slurmctld munged; do
        [ -f "$dir/$name.pid" ] || continue
        pid=$(cat "$dir/$name.pid")
        if grep -q "$name" "/proc/$pid/cmdline" 2>/dev/null; then
            kill -KILL "$pid"
        fi
        rm "$dir/$name.pid"
    done
}

case "$task" in
    up) up "${3-}" ;;
    down) down ;;
    *) fail "unknown task '$task': use up or down" ;;
esac
