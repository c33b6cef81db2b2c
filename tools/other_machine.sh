#!/usr/bin/env bash
# Runs a command on this project in a bare Debian 13 of another machine, as root:
#   tools/other_machine.sh arm64 [COMMAND...]     without one: what docs/releases.md says
# The kernel starts its programs with qemu-user of Debian 13: PyTorch asks for a register
# that older ones lack.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "${1:-}" = arm64 ] || {
  echo "vLLM has wheels for CPUs of amd64 and arm64 only." >&2
  exit 2
}
shift
[ $# -gt 0 ] || set -- tools/emulated_tests.sh
handlers=/proc/sys/fs/binfmt_misc
qemu=build/qemu/usr/bin/qemu-aarch64
handler=nemotron-vl-aarch64 # the one registered last is used, whatever others there are

[ -e $handlers/register ] || mount -t binfmt_misc binfmt_misc $handlers
if [ ! -e $qemu ]; then
  tools/debian.sh trixie sh -c "apt-get -qq update
    mkdir -p build && cd build && rm -f qemu-user_*.deb && apt-get download qemu-user"
  dpkg-deb -x build/debian/trixie/root/project/build/qemu-user_*.deb build/qemu
fi
if [ ! -e $handlers/$handler ]; then
  # How its ELF files begin: 64 bits, little endian, a program or a library, the number of
  # the machine; then which bits count. With F the kernel keeps qemu open, for chroot.
  begin='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  bits='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
  printf %s ":$handler:M::$begin:$bits:$PWD/$qemu:F" >$handlers/register
fi
ARCH=arm64 exec tools/debian.sh trixie "$@"
