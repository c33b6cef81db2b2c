#!/usr/bin/env bash
# Runs all that waits for a GPU and collects the results in one folder, in under an hour
# if the weights are on the disk:
#   tools/gpu_day.sh MODEL FOLDER [STEP...]
#   tools/gpu_day.sh --list
# BIN is the folder of an environment's programs (.venv/bin): a GPU needs the extras
# cuda, verify and documents, and pytest. With TRUST_REMOTE_CODE=1, vLLM's in-tree model
# is measured, too; it runs the checkpoint's code. LMMS_EVAL is the folder of programs of
# an environment with lmms-eval. ANYWAY=1 runs without a GPU.
set -uo pipefail

# Name of a step and its most minutes.
steps=(doctor:2 tests:9 verify:20 in-tree:9 serve:5 bench-serve:7 lmms-eval:6)
if [ "${1:-}" = --list ]; then
  printf '%s\n' "${steps[@]}"
  exit
fi
if [ $# -lt 2 ]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
model=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2
[ ! -d "$model" ] || model=$(cd "$model" && pwd)
cd "$(dirname "$0")/.."
bin=$(cd "${BIN:-.venv/bin}" && pwd)

if ! nvidia-smi -L >"$out/gpus.txt" 2>&1 && [ -z "${ANYWAY:-}" ]; then
  echo "gpu_day: there is no GPU (nvidia-smi -L); ANYWAY=1 runs without one" >&2
  exit 2
fi

# What a step runs. A reason on the first line of its output and status 77: not run.
run_step() {
  case $1 in
  doctor) "$bin/nemotron-vl" doctor ;;
  tests) "$bin/python" -m pytest -rs -m "" \
    tests/entrypoints/nemotron_vl/test_verify_on_gpu.py \
    tests/models/multimodal/test_nemotron_vl_conditioner.py ;;
  verify) "$bin/nemotron-vl" verify "$model" --out "$out/verify" ;;
  in-tree)
    if [ "${TRUST_REMOTE_CODE:-}" != 1 ]; then
      echo "TRUST_REMOTE_CODE=1 lets it run the checkpoint's code"
      return 77
    fi
    "$bin/nemotron-vl" verify "$model" --parts read measure --against in-tree \
      --trust-remote-code --out "$out/in-tree"
    ;;
  serve) "$bin/python" benchmarks/serve.py --model "$model" --quick --json ;;
  bench-serve) "$bin/python" benchmarks/bench_serve.py --model "$model" --quick --json ;;
  lmms-eval)
    if [ -z "${LMMS_EVAL:-}" ]; then
      echo "LMMS_EVAL names no environment with lmms-eval"
      return 77
    fi
    "$bin/python" tools/harness/run.py "$model" "$out/lmms-eval" \
      --programs "$LMMS_EVAL" --count 100
    ;;
  *)
    echo "There is no step $1: ${steps[*]%:*}" >&2
    return 2
    ;;
  esac
}
export -f run_step
export model out bin

failed=0
printf '| step | result | seconds |\n|---|---|---|\n' >"$out/summary.md"
for step in "${steps[@]}"; do
  name=${step%:*}
  [ $# = 0 ] || [[ " $* " == *" $name "* ]] || continue
  SECONDS=0
  timeout --kill-after=30 "${step#*:}m" bash -c 'run_step "$0"' "$name" \
    >"$out/$name.log" 2>&1
  status=$?
  case $status in
  0) result=passed ;;
  77) result="not run: $(head -1 "$out/$name.log")" ;;
  124 | 137) result="stopped after ${step#*:} minutes" failed=1 ;;
  *) result="failed with status $status, see $name.log" failed=1 ;;
  esac
  echo "| $name | $result | $SECONDS |" | tee -a "$out/summary.md"
done
exit $failed
