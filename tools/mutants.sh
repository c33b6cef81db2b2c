#!/usr/bin/env bash
# Counts the mutants of the core that the tests notice, see docs/mutants.md:
#   tools/mutants.sh [--minutes 60] [--seed 39] [--module FILE ...] [--write]
# Run it again to go on. The session is in build/mutants; delete that to begin anew.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1
# The same size and time of a file before and after a mutation: byte code would be old.
export PYTHONDONTWRITEBYTECODE=1

site=build/mutants/site
if [ ! -d "$site" ]; then
  .venv/bin/uv pip install --quiet --no-deps --target "$site" -r requirements/mutants.txt
fi
exec .venv/bin/python tools/mutants/run.py "$@"
