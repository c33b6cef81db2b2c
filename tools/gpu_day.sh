#!/usr/bin/env bash
# Runs all that waits for a GPU and collects the results in one folder, in under an hour
# if the weights are on the disk:
#   tools/gpu_day.sh MODEL FOLDER [STEP...]
#   tools/gpu_day.sh --list
# It prints the steps that failed, and nothing if none did; summary.md has all.
# BIN is the folder of an environment's programs (.venv/bin): a GPU needs the extras cuda,
# verify and documents, and pytest, datasets, pandas and scikit-image. The benchmarks are
# offline, so MODEL must be a folder or in the cache. With TRUST_REMOTE_CODE=1, the
# checkpoint's own code is compared with the reference, and vLLM's in-tree model, which runs
# that code, is measured. LMMS_EVAL is the folder of programs of an environment with
# lmms-eval. ANYWAY=1 runs without a GPU. For tests, MINUTE is the number of seconds in a
# minute.
set -uo pipefail

# Name of a step and its most minutes.
steps=(doctor:2 remote-code:3 tests:9 verify:19 in-tree:8 serve:5 bench-serve:7 lmms-eval:6)
if [ "${1:-}" = --list ]; then
  printf '%s\n' "${steps[@]}"
  exit
fi
if [ $# -lt 2 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
model=$1
{ mkdir -p "$2" && out=$(cd "$2" && pwd) && : >"$out/summary.md"; } || exit 2
shift 2
for name in "$@"; do
  [[ " ${steps[*]%:*} " == *" $name "* ]] && continue
  echo "gpu_day: there is no step $name: ${steps[*]%:*}" >&2
  exit 2
done
[ ! -d "$model" ] || model=$(cd "$model" && pwd)
if [ -n "${LMMS_EVAL:-}" ]; then
  LMMS_EVAL=$(cd "$LMMS_EVAL" && pwd) || exit 2
fi
bin=$(cd "${BIN:-$(dirname "$0")/../.venv/bin}" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2

if ! nvidia-smi -L >"$out/gpus.txt" 2>&1 && [ -z "${ANYWAY:-}" ]; then
  echo "gpu_day: there is no GPU (nvidia-smi -L); ANYWAY=1 runs without one" >&2
  exit 2
fi

# What a step runs. A reason on the first line of its output and status 77: not run.
run_step() {
  case $1 in
  doctor) "$bin/nemotron-vl" doctor ;;
  remote-code)
    may_run_code || return
    "$bin/nemotron-vl" verify "$model" --against remote-code --trust-remote-code \
      --out "$out/remote-code"
    ;;
  tests)
    "$bin/python" -m pytest -rs -m "" $gpu_tests >"$out/pytest.log" 2>&1
    status=$?
    # pytest also passes if it skips all, such as without CUDA in PyTorch.
    if [ $status = 0 ] && grep "^SKIPPED" "$out/pytest.log"; then
      status=77
    fi
    cat "$out/pytest.log"
    return $status
    ;;
  verify) "$bin/nemotron-vl" verify "$model" --out "$out/verify" ;;
  in-tree)
    may_run_code || return
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
  esac
}
may_run_code() {
  [ "${TRUST_REMOTE_CODE:-}" != 1 ] || return 0
  echo "TRUST_REMOTE_CODE=1 lets it run the checkpoint's code"
  return 77
}
export -f run_step may_run_code
gpu_tests="tests/nemotron_vl/verify/test_verify_on_gpu.py
  tests/vllm/models/multimodal/test_nemotron_vl_conditioner.py"
export model out bin gpu_tests LMMS_EVAL

failed=()
printf '| step | result | seconds |\n|---|---|---|\n' >"$out/summary.md"
for step in "${steps[@]}"; do
  name=${step%:*}
  [ $# = 0 ] || [[ " $* " == *" $name "* ]] || continue
  SECONDS=0
  limit=$((${step#*:} * ${MINUTE:-60}))
  # The signal goes to all programs of the step, which then stop the servers that they
  # started. The shell waits for them.
  timeout --kill-after=60 $limit bash -c 'trap : TERM; run_step "$0"' "$name" \
    >"$out/$name.log" 2>&1
  status=$?
  [ $status != 137 ] || [ $SECONDS -lt $limit ] || status=124
  case $status in
  0) result=passed ;;
  77) result="not run: $(head -1 "$out/$name.log")" ;;
  124) result="stopped after ${step#*:} minutes" ;;
  *) result="failed with status $status, see $name.log" ;;
  esac
  [ $status = 0 ] || [ $status = 77 ] || failed+=("$name: $result")
  echo "| $name | $result | $SECONDS |" >>"$out/summary.md"
done
[ ${#failed[@]} != 0 ] || exit 0
printf '%s\n' "${failed[@]}" >&2
exit 1
