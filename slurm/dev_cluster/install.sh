#!/usr/bin/env bash
# Installs SLURM's daemons and commands from the distribution's packages; exit codes as of apt.sh.
exec "$(dirname "$0")/apt.sh" slurmctld slurmd sbatch munged -- slurmctld slurmd slurm-client munge
