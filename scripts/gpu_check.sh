#!/usr/bin/env bash
# gpu_check.sh PYTHON FOLDER: builds the CUDA library for the GPU here, then tests, sanitizes and
# measures it. Every step runs even if one before it failed; STEPS="build tests" chooses some.
# FOLDER/report.txt holds all output and ends with a line per step; FOLDER/*.jsonl hold the
# benchmark rows. The exit status is the number of steps that failed.
set -uo pipefail
python=$1
folder=$2
cd "$(dirname "$0")/.."
mkdir -p "$folder"
export PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
export SHAPE_ROI_ALIGN_REQUIRE_CUDA=1
steps=${STEPS:-machine build tests memcheck racecheck initcheck bench multiscale}
summary=()
failures=0

step() { # step NAME COMMAND...
  local name=$1 start=$SECONDS status=0
  shift
  [[ " $steps " == *" $name "* ]] || return 0
  printf '\n== %s: %s\n' "$name" "$*"
  timeout "${STEP_SECONDS:-600}" "$@" || status=$?
  ((status == 0)) || ((failures += 1))
  summary+=("$(printf '%-12s exit %3d  %4d s' "$name" "$status" $((SECONDS - start)))")
}

sanitize() { # sanitize TOOL: every named case, forward and backward, in one type
  step "$1" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 \
    "$python" -m pytest -q -x -p no:cacheprovider -m cuda -k "test_operator and f32" \
    tests/test_forward.py tests/test_gradients.py
}

main() {
  local architecture
  architecture=$("$python" -c 'import torch; print(*torch.cuda.get_device_capability(), sep=".")')
  step machine nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
  step build env SHAPE_ROI_ALIGN_CUDA=1 TORCH_CUDA_ARCH_LIST="$architecture" \
    NVCC_APPEND_FLAGS=-lineinfo "$python" setup.py build_ext --inplace
  step tests "$python" -m pytest -q -m cuda tests --ignore=tests/mrrcnn
  sanitize memcheck
  sanitize racecheck
  sanitize initcheck
  step bench "$python" benchmarks/bench_roi_align.py --device cuda \
    --dtype float32 float16 --json "$folder/bench_roi_align.jsonl"
  step multiscale "$python" benchmarks/bench_multiscale.py --device cuda \
    --dtype float32 float16 --json "$folder/bench_multiscale.jsonl"
  printf '\n'
  printf '%s\n' "${summary[@]}"
  return "$failures"
}

main 2>&1 | tee "$folder/report.txt"
