#!/bin/sh
# SPDX-License-Identifier: MIT
# In a guest (scripts/record_captures.py): what its kernel sends to a disk over one path, from
# mkfs to umount, as RESULTS/NAME.pcapng. record_captures.sh VSCSI PATH-KIND RESULTS NAME
set -eu
vscsi=$1 kind=$2 results=$3 name=$4
export DM_DISABLE_UDEV=1
cd "$(mktemp -d)"
wait_ready() { # FILE PROCESS
    until grep -q ^ready: "$1"; do
        kill -0 "$2"
        sleep 0.2
    done
}
modprobe -a sd_mod dm_mod loop
truncate -s 64M disk.img
loop=$(losetup -f --show disk.img)
dmsetup create "$name" --table "0 131072 linear $loop 0" # which can be suspended
"$vscsi" serve --direct "/dev/mapper/$name" --dir run --capture "$results/$name.pcapng" >serve.log &
server=$!
wait_ready serve.log $server
"$vscsi" hba "$kind:run" >hba.log &
hba=$!
wait_ready hba.log $hba
disk=$(awk '/^ready:/ { print $NF }' hba.log)
sg=$(sed -n 's/^ready:.*\(\/dev\/sg[0-9]*\).*/\1/p' hba.log)

mkfs.ext4 -q -U 1f6a0c7e-6f0e-4d3b-9a53-0d9d6f8f3c11 "$disk"
mkdir mnt
mount "$disk" mnt
fio --name=mixed --directory=mnt --rw=randrw --bsrange=4k-64k --size=8M --io_size=6M --direct=1 \
    --ioengine=libaio --iodepth=8 --randseed=1 --end_fsync=1 >fio.log

# A reset while commands hang, as a kernel does it: it aborts them (SG_SCSI_RESET, of the device).
dmsetup suspend --nolockfs --noflush "$name"
dd if="$disk" of=/dev/null bs=64k skip=400 count=8 iflag=direct 2>dd.log &
reader=$!
until [ "$(awk '{ print $1 + $2 }' "/sys/class/block/${disk##*/}/inflight")" -gt 0 ]; do sleep 0.2; done
"$(dirname "$vscsi")/python" -c "
import fcntl, struct, sys
with open(sys.argv[1], 'rb+', buffering=0) as node:
    fcntl.ioctl(node, 0x2284, struct.pack('i', 0x101))
" "$sg" &
reset=$!
sleep 3
dmsetup resume "$name"
wait $reader || cat dd.log
wait $reset || echo "$name: no reset of the kernel's"
# And one of another guest's, which this one hears of as a unit attention.
"$(dirname "$vscsi")/python" -c "
import sys, vscsi
from vscsi.target.base import Function
with vscsi.connect(sys.argv[1]) as hba:
    print(hba.manage(hba.lun(0), Function.LOGICAL_UNIT_RESET).name)
" "$kind:run"
rm mnt/mixed*
sync -f mnt
fstrim mnt
umount mnt
kill $hba
wait $hba
kill $server
wait $server
dmsetup remove --retry "$name"
losetup -d "$loop"
