#!/usr/bin/env bash
# Runs a command on a copy of this project's tracked files in a bare Debian, as root:
#   tools/debian.sh SUITE [COMMAND...]     such as: tools/debian.sh testing make demo
#   ARCH=arm64 tools/debian.sh SUITE ...   of another machine, which qemu-user emulates
# debootstrap makes the system in build/debian/SUITE, with the packages that the README
# names. Each call starts with a new copy; the environment `.venv` and `build` are kept.
set -euo pipefail
suite=$1
shift
[ $# -gt 0 ] || set -- make demo
cd "$(dirname "$0")/.."
own=$(dpkg --print-architecture)
arch=${ARCH:-$own}
root=$PWD/build/debian/$suite
[ "$arch" = "$own" ] || root+=-$arch
packages=ca-certificates,g++,make,python3,python3-venv

if [ ! -e "$root.made" ]; then
  rm -rf "$root"
  mkdir -p "$root"
  debootstrap --arch="$arch" --variant=minbase --include="$packages" "$suite" "$root"
  touch "$root.made"
fi

# The system uses this machine's network and the authorities that it trusts.
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"

project=$root/root/project
mkdir -p "$project"
find "$project" -mindepth 1 -maxdepth 1 ! -name .venv ! -name build -exec rm -rf {} +
git ls-files -z | tar --null --create --files-from=- | tar --extract --directory="$project"

# unshare: what is mounted here leaves with the command, and so do its processes. The
# shell stays, because process 1 has to collect the orphans that have ended.
exec unshare --mount --pid --fork --kill-child bash -euc '
  root=$1
  shift
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount --rbind --make-slave /sys "$root/sys"
  chroot "$root" /bin/sh -c "cd /root/project && exec \"\$@\"" sh "$@" || exit
' bash "$root" "$@"
