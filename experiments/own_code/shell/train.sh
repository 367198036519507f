#!/bin/sh
# Trains nothing: the loss of a made-up law, and every way in which a run can end.
#
#   ./train.sh PARAMETERS TOKENS SEED
set -eu
parameters=$1 tokens=$2 seed=$3
attempt=${ISOFLOP_ATTEMPT:-1}
echo "attempt $attempt: $parameters parameters, $tokens tokens"

case "${MISHAP:-none}-$seed-$attempt" in
    # Fails each time.
    fails-1-*) echo "out of paper" >&2; exit 3 ;;
    # Is preempted once: to be continued.
    stops-1-1) echo "no time left"; exit 75 ;;
    # The loss is no number any more, and would not be the next time.
    diverges-1-*) echo "final loss nan"; exit 77 ;;
esac

awk -v n="$parameters" -v d="$tokens" -v seed="$seed" 'BEGIN {
    loss = 1.7 + 400 / n ^ 0.34 + 410 / d ^ 0.28 + 0.002 * seed
    printf "trained on %d tokens\nfinal loss %.6f\n", d, loss
}'
