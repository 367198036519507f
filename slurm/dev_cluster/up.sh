#!/usr/bin/env bash
# A real SLURM cluster on this machine: munged, slurmctld and one slurmd per pretend node, as root,
# with everything it writes in one folder.
#
#     up.sh [FOLDER]                (default: /tmp/isoflop-slurm)
#     source FOLDER/env             then sbatch, squeue, isoflop submit ...
#     down.sh [FOLDER]
#
# Settings are environment variables:
#   NODES=4 CPUS=4 MEM=4000 GPUS=2   nodes n1, n2, ...; what each pretends to have (MEM in MB)
#   MAXARRAY=1001                 MaxArraySize: one more than the largest index of an array
#   MINJOBAGE=300                 seconds for which the controller remembers a job that has ended
#   KILLWAIT=5                    seconds between TERM and KILL
#   SLURMD_TIMEOUT=10             seconds until a silent node is down
#   GRACE=0                       seconds between a preemption and the kill
#   PREEMPT_SIGNAL=0              1: a preempted job first gets its --signal (give GRACE too)
#   PREEMPT_MODE=REQUEUE          or CANCEL: what happens to a preempted job
#   ENFORCE_MEM=0                 1: a job over its --mem is killed (looked at every second)
#   UNTIL_PID=                    the cluster is taken down when this process has ended
#   EXTRA=                        further lines of slurm.conf
# Partitions: main, and high with the same nodes and a higher priority, whose jobs preempt.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Ordinary users' PATH often lacks the folders of daemons.
PATH=$PATH:/usr/sbin:/sbin
folder=$(realpath -m "${1:-/tmp/isoflop-slurm}")
NODES=${NODES:-4} CPUS=${CPUS:-4} MEM=${MEM:-4000} GPUS=${GPUS:-2}
MAXARRAY=${MAXARRAY:-1001} MINJOBAGE=${MINJOBAGE:-300} KILLWAIT=${KILLWAIT:-5}
SLURMD_TIMEOUT=${SLURMD_TIMEOUT:-10} GRACE=${GRACE:-0} PREEMPT_SIGNAL=${PREEMPT_SIGNAL:-0}
PREEMPT_MODE=${PREEMPT_MODE:-REQUEUE} ENFORCE_MEM=${ENFORCE_MEM:-0} EXTRA=${EXTRA:-}

die() {
    echo "up.sh: $*" >&2
    exit 2
}

check() {
    [ "$EUID" = 0 ] || die "the cluster's daemons run as root; use sudo"
    local command
    for command in slurmctld slurmd sbatch munged; do
        command -v "$command" >/dev/null || die "no $command; run $here/install.sh"
    done
    case $folder in *[[:space:]\"\'\\]*) die "SLURM takes no space or quote in $folder" ;; esac
    # A Unix socket's path is limited to 107 characters; a job's is spool/n20/n20_12345.4294967291.
    [ ${#folder} -le 75 ] || die "$folder: choose a shorter path"
    [ ! -e "$folder/etc/slurm.conf" ] || die "a cluster is up in $folder; run $here/down.sh $folder"
    if [ -d "$folder" ] && [ -n "$(ls -A "$folder")" ]; then die "$folder is not empty"; fi
}

# The first of as many free ports in a row as there are daemons.
free_ports() {
    local first port used
    used=$(awk 'NR > 1 {split($2, at, ":"); print at[2]}' /proc/net/tcp /proc/net/tcp6 2>/dev/null)
    for _ in $(seq 100); do
        first=$((20000 + RANDOM % 12000))
        for port in $(seq "$first" $((first + NODES))); do
            ! grep -q "$(printf '%04X' "$port")" <<<"$used" || continue 2
        done
        echo "$first"
        return
    done
    die "no $((NODES + 1)) free ports in a row"
}

configure() {
    local port=$1 host names gather=jobacct_gather/none memory="" signal=""
    host=$(hostname -s)
    names="n[1-$NODES]"
    [ "$ENFORCE_MEM" = 0 ] || gather=jobacct_gather/linux memory="JobAcctGatherParams=OverMemoryKill"
    [ "$PREEMPT_SIGNAL" = 0 ] || signal="SlurmctldParameters=preempt_send_user_signal"
    # Of note: cred_expire is what a requeued job waits before it starts again (default 120 s, 5 is
    # the least); nodes may claim more cores than there are (config_overrides); no cgroups anywhere.
    cat >"$folder/slurm.conf" <<CONF
ClusterName=dev
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/pid/slurmctld.pid
SlurmdPidFile=$folder/pid/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=$gather
JobAcctGatherFrequency=1
$memory
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/log/jobcomp.txt
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=200
GresTypes=gpu
SlurmdParameters=config_overrides
$signal
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=$PREEMPT_MODE
JobRequeue=1
ReturnToService=2
KillWait=$KILLWAIT
SlurmdTimeout=$SLURMD_TIMEOUT
MinJobAge=$MINJOBAGE
MaxArraySize=$MAXARRAY
MaxJobCount=20000
$EXTRA
NodeName=$names NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + NODES))] CPUs=$CPUS RealMemory=$MEM Gres=gpu:$GPUS
PartitionName=main Nodes=$names Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=$GRACE
PartitionName=high Nodes=$names MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$folder/etc/cgroup.conf"
    gpus "$names" >"$folder/etc/gres.conf"
    printf 'export SLURM_CONF=%q\n' "$folder/etc/slurm.conf" >"$folder/env"
    # Last: from here on this is a cluster's folder, which down.sh may clear.
    mv "$folder/slurm.conf" "$folder/etc/slurm.conf"
}

# Pretend GPUs are devices that lead to /dev/null: a job gets no CUDA_VISIBLE_DEVICES for plain files.
gpus() {
    local gpu
    [ "$GPUS" -gt 0 ] || return 0
    for gpu in $(seq 0 $((GPUS - 1))); do mknod "$folder/dev/nvidia$gpu" c 1 3; done
    echo "NodeName=$1 Name=gpu File=$folder/dev/nvidia[0-$((GPUS - 1))]"
}

start() {
    local node
    head -c 128 /dev/urandom >"$folder/munge/key"
    chmod 400 "$folder/munge/key"
    # --force: folders above may be private; the jobs are root's and reach the socket all the same.
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
        --pid-file="$folder/pid/munged.pid" --log-file="$folder/munge/log/munged.log" \
        --seed-file="$folder/munge/log/seed"
    slurmctld
    for node in $(seq "$NODES"); do slurmd -N "n$node"; done
}

num_idle() {
    sinfo --noheader --Node --partition=main --states=idle --format=%N 2>/dev/null | wc -l
}

wait_until_idle() {
    for _ in $(seq 300); do
        [ "$(num_idle)" != "$NODES" ] || return 0
        sleep 0.05
    done
    tail -n 20 "$folder"/log/*.log >&2
    "$here/down.sh" "$folder"
    die "not all nodes came up; the ends of their logs are above"
}

check
umask 022
mkdir -p "$folder"/{etc,log,pid,state,spool,munge/log,dev}
chmod 755 "$folder"
chmod 711 "$folder/munge"
chmod 700 "$folder/munge/log"
export SLURM_CONF=$folder/etc/slurm.conf
# One cluster at a time from choosing its ports until it has them.
exec 9>"/tmp/.isoflop-dev-cluster.lock"
flock 9
configure "$(free_ports)"
start 9>&-
wait_until_idle 9>&-
flock -u 9
if [ -n "${UNTIL_PID:-}" ]; then
    setsid "$here/down.sh" --when-gone "$UNTIL_PID" "$folder" 9>&- </dev/null >/dev/null 2>&1 &
fi
echo "$NODES nodes are up in $folder. In the shell that is to use them:"
echo "    source $folder/env"
