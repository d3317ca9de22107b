# SPDX-License-Identifier: MIT
# Second program in the guest, on its real root: what a booted machine has set up, then the command.
# Three virtio-serial ports lead to the host: vm.out and vm.err (the command's), vm.status (lines
# "up", then "exit STATUS BYTES-TO-OUT BYTES-TO-ERR").
. /run/job
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/run/home TMPDIR=/run/tmp LANG=C.UTF-8 TERM=dumb VSCSI_IN_VM=1

port() { # devtmpfs names ports by number, sysfs knows their names
    while :; do
        for entry in /sys/class/virtio-ports/*; do
            [ "$(cat "$entry/name" 2>/dev/null)" = "$1" ] && echo "${entry##*/}" && return
        done
        sleep 0.1
    done
}
sent() { # bytes written to a port, which QEMU may not have taken yet
    sed -n 's/^bytes_sent: //p' "/sys/kernel/debug/virtio-ports/$1"
}
out=$(port vm.out) err=$(port vm.err)
exec 3>"/dev/$(port vm.status)" 4>"/dev/$out" 5>"/dev/$err"

mount -t debugfs debugfs /sys/kernel/debug
modprobe configfs && mount -t configfs configfs /sys/kernel/config
mkdir -p /etc/target/pr /etc/target/alua # LIO's dbroot; Debian's targetcli package makes it
echo 60 >/proc/sys/kernel/hung_task_timeout_secs
hostname vscsi-vm
/run/busybox ip link set lo up

echo up >&3
cd "$PROJECT" && (command) </dev/null >&4 2>&5 3>&- 4>&- 5>&-
result=$?
sync
# What was written is lost if the guest ends now: the host ends it, when it has all bytes.
echo "exit $result $(sent "$out") $(sent "$err")" >&3
while :; do sleep 1000; done
