#!/bin/busybox sh
# SPDX-License-Identifier: MIT
# First program in the guest, in the initramfs: build the root the command sees.
#   /            the host's root over 9p, read-only, under a tmpfs overlay
#   $PROJECT     the host's, really read-only
#   /run/results the host's directory, read-write
# /job holds PROJECT, MODULES (paths on the host) and the function `command`.
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /host /overlay /root
/bin/busybox --install -s /bin
. /job
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1

die() { # without an exit status sent, the host knows that it failed and shows these words
    echo "init: $1"
    echo b >/proc/sysrq-trigger
    sleep 60
}

for module in $(cat /modules/order); do
    insmod "/modules/$module" || die "insmod $module failed"
done
share() { mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,access=any,$1" "$2" "$3" || die "no $2"; }
share cache=loose,ro host /host
mount -t tmpfs -o mode=0755 overlay /overlay
mkdir /overlay/upper /overlay/work
mount -t overlay -o lowerdir=/host,upperdir=/overlay/upper,workdir=/overlay/work,xino=off overlay /root ||
    die "no overlay"

mount -t tmpfs -o mode=0755 run /root/run
mkdir -p /root/run/results /root/run/tmp /root/run/home /root/lib/modules "/root$PROJECT"
chmod 1777 /root/run/tmp
share cache=mmap results /root/run/results
mount --bind "/host$MODULES" /root/lib/modules || die "no modules"
mount --bind "/host$PROJECT" "/root$PROJECT" || die "no project"
mount -o remount,ro,bind "/root$PROJECT"
mkdir -p /dev/shm /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
ln -s /proc/self/fd /dev/fd
for tree in proc sys dev; do
    mount --move /$tree /root/$tree
done
cp /bin/busybox /job /guest.sh /root/run/
exec switch_root /root /run/busybox sh /run/guest.sh
