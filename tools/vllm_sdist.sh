#!/usr/bin/env bash
# Prints the folder with the source distribution of a vLLM release, such as 0.32.0: it
# has vLLM's own tests, which no wheel has. If it is missing, it is fetched to
# build/vllm_sdist. pip asks a source distribution for its metadata before it keeps it,
# and vLLM's needs the two packages that build it.
set -euo pipefail
cd "$(dirname "$0")/.."
release=$1
folder=build/vllm_sdist/$release
if [ ! -d "$folder" ]; then
  part=$folder.part
  rm -rf "$part"
  mkdir -p "$part"
  .venv/bin/uv pip install --quiet --target "$part/builders" setuptools-rust setuptools-scm >&2
  PYTHONPATH=$PWD/$part/builders VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=$release \
    .venv/bin/python -m pip download --quiet --no-deps --no-binary vllm --no-build-isolation \
    --dest "$part" "vllm==$release" >&2
  # Without vllm/, which would hide the installed one.
  mkdir "$part/tree"
  tar -xzf "$part/vllm-$release.tar.gz" -C "$part/tree" --strip-components 1 \
    "vllm-$release/tests" "vllm-$release/examples" "vllm-$release/pyproject.toml"
  # A module that vLLM's tests import and that vLLM does not need.
  .venv/bin/uv pip install --quiet --target "$part/tree/site" tblib >&2
  mv "$part/tree" "$folder"
  rm -r "$part"
fi
echo "$PWD/$folder"
