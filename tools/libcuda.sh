#!/usr/bin/env bash
# Unpacks the library of NVIDIA's driver below a folder: tools/libcuda.sh FOLDER
# vLLM's compiled parts for CUDA need it to be imported. It comes from the part "non-free"
# of the Debian that this machine uses.
set -euo pipefail
mkdir -p "$1/lists"
cd "$1"
apt-get indextargets --format 'deb $(REPO_URI) $(CODENAME) non-free' 'Identifier: Packages' |
  sort -u >sources.list
apt() {
  apt-get -q -o Dir::Etc::SourceList="$PWD/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$PWD/lists" "$@"
}
apt update
apt download libcuda1
dpkg-deb -x libcuda1_*.deb .
