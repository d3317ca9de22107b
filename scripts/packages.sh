#!/bin/sh
# SPDX-License-Identifier: MIT
# Install the Debian packages that a purpose needs: packages.sh PURPOSE [PURPOSE ...]
# With root or password-less sudo they are installed; otherwise the command to run is printed.
set -eu

packages_for() {
    case "$1" in
    build) echo gcc libc6-dev liburing-dev python3-dev python3-venv ;;
    demo) echo e2fsprogs libnbd-bin nbdkit nbdkit-plugin-python qemu-utils ;;
    test) echo blktrace chromium fio fonts-dejavu-core openjdk-17-jre-headless xenstore-utils tshark ;;
    figures) echo fio qemu-system-common ;;
    fuzz) echo clang-14 libclang-rt-14-dev ;;
    vm) echo dbus-daemon dmsetup e2fsprogs kmod qemu-system-x86 targetcli-fb ;;
    *) echo "packages.sh: unknown purpose '$1'" >&2; exit 2 ;;
    esac
}

missing=
for purpose in "$@"; do
    for package in $(packages_for "$purpose"); do
        state=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
        [ "$state" = "install ok installed" ] || missing="$missing $package"
    done
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "No apt-get here: make sure that this system has the equivalents of$missing" >&2
    exit 0
fi
if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    echo "Missing packages; run this, then make again:" >&2
    echo "    sudo apt-get install$missing" >&2
    exit 2
fi
echo "Installing:$missing"
log=$(mktemp)
if ! { $as_root apt-get update -q &&
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing; } \
    >"$log" 2>&1; then
    tail -20 "$log" >&2
    echo "apt-get failed; its whole output is in $log" >&2
    exit 2
fi
rm -f "$log"
