#!/usr/bin/env bash
# Compiles requirements/*.in to .txt; with --check, fails if a .txt is out of date.
set -euo pipefail
cd "$(dirname "$0")/../requirements"
uv=$(command -v ../.venv/bin/uv || command -v uv)
export UV_CUSTOM_COMPILE_COMMAND="tools/compile_requirements.sh"

compile() { # IN LOCK [OPTION...]: writes LOCK, or compares it with --check
  local in=$1 lock=$2 out=$2
  shift 2
  if [ -n "${check:-}" ]; then
    out=$check/$(basename "$lock")
    cp "$lock" "$out"
  fi
  "$uv" pip compile --quiet --universal --python-version 3.11 "$@" "$in" -o "$out"
  [ -z "${check:-}" ] || diff -u "$lock" "$out"
}

if [ "${1:-}" = --check ]; then
  check=$(mktemp -d)
  trap 'rm -rf "$check"' EXIT
fi
compile cpu.in cpu.txt --override cpu-overrides.txt
compile cuda.in cuda.txt
compile test.in test.txt --override cpu-overrides.txt
compile lint.in lint.txt
compile lmms-eval.in lmms-eval.txt
compile ray.in ray.txt
compile mutants.in mutants.txt
# The other releases of vLLM: as test.in, with overrides for what differs.
for differs in releases/*.in; do
  compile test.in "${differs%.in}.txt" --override cpu-overrides.txt --override "$differs"
done
