#!/bin/sh
# Trains nothing: the loss of a made-up law, and every way in which a run can end.
#
#   ./train.sh PARAMETERS TOKENS SEED FOLDER
set -eu
parameters=$1 tokens=$2 seed=$3 folder=$4
echo "$parameters parameters, $tokens tokens"

# MISHAP is what happens to the model of 200 million parameters.
case "${MISHAP:-none}-$parameters" in
    # Fails each time.
    fails-200000000) echo "out of paper" >&2; exit 3 ;;
    # Is preempted half-way, once, and goes on from what it left.
    stops-200000000)
        if [ ! -e "$folder/half" ]; then
            echo "half of the tokens" > "$folder/half"
            exit 75
        fi ;;
    # The loss is no number any more, and would not be the next time.
    diverges-200000000) echo "final loss nan"; exit 77 ;;
esac

awk -v n="$parameters" -v d="$tokens" -v seed="$seed" 'BEGIN {
    loss = 1.7 + 400 / n ^ 0.34 + 410 / d ^ 0.28 + 0.002 * seed
    printf "trained on %s tokens\nfinal loss %.6f\n", d, loss
}'
