#!/usr/bin/env bash
# Installs packages of the distribution, once: apt.sh COMMAND... -- PACKAGE...
# Exit codes: 0 all commands are there; 1 they could not be installed; 3 that takes root and apt-get.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
commands=()
while [ "$1" != -- ]; do
    commands+=("$1")
    shift
done
shift
packages=("$@")

missing() {
    local command
    for command in "${commands[@]}"; do
        command -v "$command" >/dev/null || return 0
    done
    return 1
}

apt() {
    # Another apt may be at work (a machine's first minutes). RUNLEVEL: services do not start.
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -o DPkg::Lock::Timeout=120 "$@"
}

missing || exit 0
if [ "$EUID" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "apt.sh: to install ${packages[*]} takes root and apt-get" >&2
    exit 3
fi
echo "installing ${packages[*]} ..."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for wait_s in 0 0 5; do
    sleep "$wait_s"
    apt install --yes --no-install-recommends "${packages[@]}" >"$log" 2>&1 && break
    # The lists of packages may be missing, or name versions that are gone.
    apt update >>"$log" 2>&1 || true
done
if missing; then
    cat "$log" >&2
    echo "apt.sh: ${packages[*]} could not be installed" >&2
    exit 1
fi
