#!/usr/bin/env bash
# Compiles requirements/*.in to .txt; with --check, fails where one is out of date.
set -euo pipefail
cd "$(dirname "$0")/../requirements"
uv=$(command -v ../.venv/bin/uv || command -v uv)
export UV_CUSTOM_COMPILE_COMMAND="tools/compile_requirements.sh"

compile() { # NAME [OPTION...]: without --check NAME.txt, with it a copy
  local name=$1 out=$1.txt
  shift
  if [ -n "${check:-}" ]; then
    out=$check/$name.txt
    cp "$name.txt" "$out"
  fi
  "$uv" pip compile --quiet --universal --python-version 3.11 "$@" "$name.in" -o "$out"
  [ -z "${check:-}" ] || diff -u "$name.txt" "$out"
}

if [ "${1:-}" = --check ]; then
  check=$(mktemp -d)
  trap 'rm -rf "$check"' EXIT
fi
compile cpu --override cpu-overrides.txt
compile cuda
compile test --override cpu-overrides.txt
compile lint
