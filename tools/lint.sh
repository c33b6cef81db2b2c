#!/usr/bin/env bash
# All checks that do not run the product.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH

ruff check .
ruff format --check .

# mypy and import-linter must see the tree under the name it is installed as.
mkdir -p build/lint
ln -sfn ../../vllm build/lint/vllm_nemotron_vl
ln -sfn ../../nemotron_vl build/lint/nemotron_vl
(
  cd build/lint
  mypy --config-file ../../pyproject.toml -p vllm_nemotron_vl -p nemotron_vl
  PYTHONPATH=. lint-imports --no-cache --no-logo ../../pyproject.toml
)

hadolint docker/Dockerfile*
NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
tools/compile_requirements.sh --check

# Each vLLM release served has what this package uses.
tools/vllm_contract.py

# An __init__.py would make the folder shadow the installed vllm.
if [ -e vllm/__init__.py ]; then
  echo "vllm/__init__.py must not exist" >&2
  exit 1
fi
