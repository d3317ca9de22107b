#!/bin/sh
# SPDX-License-Identifier: MIT
# What our ring adds to LIO, and how long `vscsi lio create` takes: on this machine, as root.
# Without a kernel to spare, in a guest: python -m tests.vm.machine /bin/sh scripts/lio_figures.sh
#   ROUNDS=6 RUNTIME=9 (seconds of each path) UNIT=vscsi-figures
set -eu
unit=${UNIT:-vscsi-figures} rounds=${ROUNDS:-6} runtime=${RUNTIME:-9}
PATH=$(dirname "$0")/../.venv/bin:$PATH
place=$(mktemp -d)
server=
end() {
    [ -z "$server" ] || { kill "$server" && wait "$server"; } || :
    vscsi lio remove "$unit" >/dev/null || :
    rm -rf "$place"
}
trap end EXIT

# The first one loads the kernel's modules; after that everything is in the page cache.
for which in first second third; do
    began=$(date +%s%N)
    vscsi lio create "$unit" --ramdisk 16M >/dev/null
    echo "vscsi lio create, the $which: $((($(date +%s%N) - began) / 1000000)) ms"
    [ $which = third ] || vscsi lio remove "$unit" >/dev/null
done

mkfifo "$place/said"
vscsi serve --lio "$unit" --dir "$place/run" >"$place/said" 2>&1 &
server=$!
exec 3<"$place/said" # open until the end: what it says later must not end it
while read -r line <&3; do
    case $line in ready:*) break ;; esac
done
node=$(vscsi lio show "$unit" | grep -o '/dev/sg[0-9]*' | head -n 1)
for depth in 32 1; do
    vscsi bench "sg:$node" "srp:$place/run" --iodepth $depth --bs 4k --rw randread \
        --runtime "$runtime" --rounds "$rounds"
done
