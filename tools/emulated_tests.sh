#!/usr/bin/env bash
# Runs what a slow, emulated machine can of this project (tools/other_machine.sh), and
# prints how each part ended and how long it took.
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1
unset PYTHONDONTWRITEBYTECODE
bin=.venv/bin
status=0

step() { # NAME COMMAND...
  local name=$1 started=$SECONDS log=build/emulated.log
  shift
  if "$@" >"$log" 2>&1; then
    echo "| $name | passed: $(tail -n 1 "$log") | $((SECONDS - started)) s |"
  else
    status=1
    tail -n 30 "$log" >&2
    echo "| $name | failed: $(tail -n 1 "$log") | $((SECONDS - started)) s |"
  fi
}

tests() {
  $bin/python -m pytest -q -p no:xdist -p no:cacheprovider --tb=short "$@"
}

mkdir -p build
processing=tests/vllm/models/multimodal/processing
step "installation" make .venv/.installed
step "nemotron-vl tiles" $bin/nemotron-vl tiles docs/tiny_wrong.png
step "resampling, digests, the tower in float32" tests \
  $processing/test_nemotron_vl_{resample,threads,digest}.py \
  tests/vllm/models/multimodal/test_nemotron_vl_tower.py
step "nemotron-vl inspect" $bin/nemotron-vl inspect nemotron_vl/checkpoints/tiny
step "nemotron-vl doctor" $bin/nemotron-vl doctor
step "nemotron-vl demo" $bin/nemotron-vl demo --out build/demo
exit $status
