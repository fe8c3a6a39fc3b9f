#!/bin/sh
# Answers a folder of arrays as one stream and keeps the answers of the sticks in one file.
#
#   classify.sh BLOB FOLDER ANSWERS [FLAGS FOR ncs2ctl...]
#
# FLAGS are for instance --sim 2. Needs nothing but a shell, cat and ncs2ctl (or the one that NCS2CTL names).
set -eu

blob=$1
folder=$2
answers=$3
shift 3

# .npy arrays may stand one behind the other: cat is all it takes. The answers come in the same order.
cat "$folder"/*.npy | "${NCS2CTL:-ncs2ctl}" "$@" --quiet run "$blob" - > "$answers"

# Exit codes are stable: 0 done, 1 a check failed or a line of a batch, 2 failure, 64 wrong usage.
for file in "$folder"/*.npy; do
    printf '{"id": "%s", "input": "%s"}\n' "$(basename "$file")" "$file"
done | "${NCS2CTL:-ncs2ctl}" "$@" --quiet --json batch - --blob "$blob" --top 1
