#!/usr/bin/env bash
# Takes a cluster of up.sh down, its jobs with it, and removes its folder.
#
#     down.sh [FOLDER]              (default: /tmp/isoflop-slurm)
#     down.sh --when-gone PID FOLDER   waits for that process to end first
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
if [ "${1:-}" = --when-gone ]; then
    while kill -0 "$2" 2>/dev/null; do sleep 0.5; done
    shift 2
fi
folder=$(realpath -m "${1:-/tmp/isoflop-slurm}")
export SLURM_CONF=$folder/etc/slurm.conf
if [ ! -e "$SLURM_CONF" ]; then
    echo "down.sh: no cluster in $folder" >&2
    exit 2
fi

# Where process 1 is slow to collect the dead, a zombie counts as gone.
alive() {
    local state
    state=$(awk '/^State/ {print $2}' "/proc/$1/status" 2>/dev/null) && [ -n "$state" ] &&
        [ "$state" != Z ]
}

wait_until_gone() {
    local process
    for process in "$@"; do
        for _ in $(seq 100); do
            alive "$process" || break
            sleep 0.05
        done
        ! alive "$process" || kill -KILL "$process" 2>/dev/null || true
    done
}

# Processes of jobs, those of a node whose slurmd died included: they carry this cluster's name.
of_jobs() {
    local at process
    for at in /proc/[0-9]*; do
        process=${at#/proc/}
        [ "$process" != $$ ] || continue
        grep -qzxF "SLURM_CONF=$SLURM_CONF" "$at/environ" 2>/dev/null || continue
        if [ "$(cat "$at/comm" 2>/dev/null)" = slurmstepd ] ||
            grep -qzE '^SLURMD_NODENAME=' "$at/environ" 2>/dev/null; then
            echo "$process"
        fi
    done
}

# A daemon by its pid file, and only if the process is that daemon.
stop() {
    local daemon=$1 file process stopped=()
    shift
    for file in "$@"; do
        process=$(cat "$file" 2>/dev/null) || continue
        [ "$(cat "/proc/$process/comm" 2>/dev/null)" = "$daemon" ] || continue
        kill "$([ "$daemon" = munged ] && echo -TERM || echo -KILL)" "$process"
        stopped+=("$process")
    done
    wait_until_gone "${stopped[@]}"
}

# Nothing is saved: the folder goes. The controller first, or it would start killed jobs again.
stop slurmctld "$folder"/pid/slurmctld.pid
stop slurmd "$folder"/pid/slurmd.*.pid
mapfile -t jobs < <(of_jobs)
if [ ${#jobs[@]} -gt 0 ]; then
    kill -KILL "${jobs[@]}" 2>/dev/null || true
    wait_until_gone "${jobs[@]}"
fi
stop munged "$folder"/pid/munged.pid
rm -rf "$folder"
