#!/usr/bin/env bash
# gpu_check.sh [PYTHON [FOLDER]]: builds the CUDA library for the GPU here, then tests, sanitizes and
# measures it. Every step runs even if one before it failed.
#
#   FOLDER/report.txt   all output, and at its end a line per step
#   FOLDER/*.jsonl      benchmark rows, of every setting that was finished
#
# The exit status is the number of steps that failed, ran out of time or were not reached. A step
# that may fail (ncu needs permission to read hardware counters) is reported, but not counted.
#
# STEPS          some of the steps below, in quotes; default: all but model and ratios
# STEP_SECONDS   limit of a step; default: 600
# TOTAL_SECONDS  limit for all steps, so that the report is always complete; default: none
# RECORD=1       also keep the rows as benchmarks/results/recorded-*-cuda.jsonl
# WORKERS        run the tests in so many processes, which needs pytest-xdist; default: one
# WHEELS         folder of wheels to use beside PYTHON's packages; default: wheels, if there is one
# PYTHON, FOLDER in place of the arguments; defaults: python3, gpu-check
#
# PYTHON needs torch with CUDA, numpy, setuptools, ninja and pybind11. Nothing is installed or
# downloaded. A step whose modules are missing fails and says which: tests and sanitizers need
# pytest, hypothesis and torchvision; benchmarks, kernels and ncu torchvision; model also tqdm,
# pycocotools and PIL. For a machine without network, download missing packages elsewhere:
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels tqdm pycocotools
#
# Steps in order: the machine; the build and its registers; the results of every kernel instance
# (instances), of all else (tests, gradcheck) and of first calls in fresh processes (capture: in a
# CUDA graph; jit: kernels compiled from PTX; driver: too old; devices: skips with fewer than two);
# the sanitizers, over every kernel instance; times and ratios to peers; hardware counters.
#
# On an H200 with 16 processors, the build took 62 s, the tests 61 s (WORKERS=8), racecheck 69 s, each
# other sanitizer 16 s, bench 30 s, kernels 13 s and ncu half a minute per case. Where a command may
# take ten minutes, TOTAL_SECONDS=580 and in turn:
#
#   WORKERS=8 STEPS="machine build ptxas instances tests gradcheck capture jit driver devices"
#   STEPS="build memcheck racecheck initcheck synccheck"
#   STEPS="build bench half multiscale deterministic curves kernels compiled"
#   STEPS="build ncu model"
set -uo pipefail
python=${1:-${PYTHON:-python3}}
folder=${2:-${FOLDER:-gpu-check}}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/.."
export PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
packages=$PWD/build/gpu_check_packages # of WHEELS
# The library is built in place and not installed.
export PYTHONPATH=$PWD:$packages${PYTHONPATH:+:$PYTHONPATH}
export SHAPE_ROI_ALIGN_REQUIRE_CUDA=1 SHAPE_ROI_ALIGN_TEST_LARGE=1 PYTHONUNBUFFERED=1
usual="machine build ptxas instances tests gradcheck capture jit driver devices"
usual+=" memcheck racecheck initcheck synccheck"
usual+=" bench half multiscale deterministic curves compiled kernels ncu"
steps=${STEPS:-$usual}
for name in $steps; do
  [[ " $usual model ratios " == *" $name "* ]] && continue
  echo "gpu_check.sh: no step $name; there are: $usual model ratios" >&2
  exit 64
done
# For ninja, when PYTHON is called by its path.
PATH+=:$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
build_log=build/gpu_check.log # of the last build that compiled kernels
summary=()
failures=0

describe() { # describe STATUS LIMIT
  case $1 in
    0) echo passed ;;
    124 | 137) echo "OUT OF TIME after $2 s" ;;
    126 | 127) echo "FAILED: no such command, exit $1" ;;
    *) echo "FAILED, exit $1" ;;
  esac
}

is_chosen() { # is_chosen STEP
  [[ " $steps " == *" $1 "* ]]
}

missing_for() { # missing_for STEP: the modules that PYTHON lacks
  local needed="torch numpy setuptools pybind11 ninja"
  case $1 in
    machine) return ;;
    build | ptxas) ;;
    instances | tests | capture | jit | driver | devices | *check)
      needed="torch numpy pytest hypothesis torchvision"
      ;;
    model) needed="torch numpy torchvision tqdm pycocotools PIL" ;;
    *) needed="torch numpy torchvision" ;;
  esac
  # shellcheck disable=SC2086
  "$python" -c 'import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))' $needed
}

step() { # step NAME COMMAND...: counts a failure
  local name=$1 start=$SECONDS limit=${STEP_SECONDS:-600} status=0 outcome missing
  is_chosen "$name" || return 0
  if [[ -n ${TOTAL_SECONDS:-} ]] && ((limit > TOTAL_SECONDS - SECONDS)); then
    limit=$((TOTAL_SECONDS - SECONDS))
  fi
  shift
  printf '\n== %s: %s\n' "$name" "$*"
  if ((limit < 1)); then
    status=1 outcome="NOT REACHED within $TOTAL_SECONDS s"
  elif missing=$(missing_for "$name") && [[ -n $missing ]]; then
    status=1 outcome="NOT STARTED: no module $missing; WHEELS can bring it"
  else
    timeout --kill-after=10 "$limit" "$@" || status=$?
    outcome=$(describe "$status" "$limit")
  fi
  if ((status != 0)); then
    if [[ -n ${may_fail:-} ]]; then
      outcome+=" (permitted)"
    else
      ((failures += 1))
    fi
  fi
  printf -- '-- %s: %s\n' "$name" "$outcome"
  summary+=("$(printf '%-14s %4d s  %s' "$name" $((SECONDS - start)) "$outcome")")
  return "$status"
}

unpack_wheels() {
  local wheel
  rm -rf "$packages"
  for wheel in "${WHEELS:-wheels}"/*.whl; do
    [[ -e $wheel ]] || return 0
    echo "== packages from $wheel"
    "$python" -m zipfile -e "$wheel" "$packages" # PYTHON may have no pip
  done
}

build() {
  local architecture log
  architecture=$("$python" -c 'import torch; print(*torch.cuda.get_device_capability(), sep=".")') ||
    return
  mkdir -p build
  log=$(mktemp)
  SHAPE_ROI_ALIGN_CUDA=1 TORCH_CUDA_ARCH_LIST=$architecture+PTX \
    NVCC_APPEND_FLAGS="-lineinfo -Xptxas -v" "$python" setup.py build_ext --inplace 2>&1 |
    tee "$log" | grep -v 'ptxas info'
  local status=${PIPESTATUS[0]}
  if grep -q 'Compiling entry function' "$log"; then
    cp "$log" "$build_log"
  fi
  rm -f "$log"
  return "$status"
}

ptxas() {
  [[ -s $build_log ]] || { echo "$build_log: no build here has compiled the kernels" && return 1; }
  "$python" scripts/ptxas_report.py <"$build_log"
}

cuda_tests() { # cuda_tests STEP OPTIONS...
  local name=$1
  shift
  step "$name" "$python" -m pytest -q -m cuda -p no:cacheprovider \
    ${WORKERS:+-n "$WORKERS" --dist worksteal} "$@"
}

sanitize() { # sanitize TOOL: every instance of every kernel, forward and backward
  step "$1" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 SHAPE_ROI_ALIGN_TEST_LARGE=0 \
    compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 \
    "$python" -m pytest -q -x -p no:cacheprovider -m cuda -k test_every_instance \
    tests/test_cuda_instances.py
}

bench() { # bench STEP SUITE OPTIONS...: FOLDER/STEP.jsonl
  local name=$1 suite=$2 rows=$folder/$1.jsonl
  is_chosen "$name" || return 0
  shift 2
  step "$name" "$python" "benchmarks/bench_$suite.py" --device cuda --json "$rows" "$@" || return
  if [[ ${RECORD:-} == 1 && -s $rows ]]; then
    cp "$rows" "benchmarks/results/recorded-$name-cuda.jsonl"
  fi
}

curves() {
  local status=0 part name
  part=$(mktemp)
  : >"$folder/curves.jsonl"
  for name in boxes channels bins; do
    "$python" benchmarks/bench_roi_align.py --device cuda --no-compile --rounds 15 \
      --curve "$name" --json "$part" || status=1
    cat "$part" >>"$folder/curves.jsonl"
  done
  rm -f "$part"
  return "$status"
}

each_kernel() { # each_kernel COMMAND...: for the types and layouts with code of their own
  local status=0 options
  while read -r options; do
    # shellcheck disable=SC2086
    "$@" scripts/profile_kernels.py p2_7x7 $options </dev/null || status=$?
  done <<'END'
--layout contiguous
--layout channels_last
--layout channels_last --dtype bfloat16
--layout contiguous --deterministic
--layout channels_last --deterministic
END
  return "$status"
}

kernels() {
  "$python" scripts/kernel_times.py --json "$folder/kernels.jsonl" --dtype float32 bfloat16 \
    --case p3_7x7 p2_7x7 p2_14x14 c4 large_boxes channels_3 one_box ten_boxes
}

counters() { # bytes moved, share of the peaks, occupancy, and what warps wait for
  each_kernel ncu --clock-control none --profile-from-start off --target-processes all \
    --section SpeedOfLight --section MemoryWorkloadAnalysis --section Occupancy \
    --section LaunchStats --section WarpStateStats "$python"
}

export python folder build_log # the functions below are commands to timeout
export -f build ptxas curves each_kernel kernels counters

main() {
  printf '== gpu_check of %s, %s\n' \
    "${BENCHMARK_COMMIT:-$(git describe --always --dirty=+ 2>/dev/null || echo 'no repository')}" \
    "$(date -u '+%Y-%m-%d %H:%M UTC')"
  unpack_wheels
  step machine bash -c 'nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv &&
    "$python" -m torch.utils.collect_env'
  step build bash -c build
  step ptxas bash -c ptxas
  local instances=tests/test_cuda_instances.py fresh=tests/test_cuda_fresh_process.py
  cuda_tests instances "$instances"
  cuda_tests tests -k "not gradcheck" --durations=10 tests --ignore=tests/examples \
    "--ignore=$instances" "--ignore=$fresh"
  cuda_tests gradcheck -k gradcheck tests --ignore=tests/examples
  cuda_tests capture -k capture "$fresh"
  cuda_tests jit -k ptx "$fresh"
  cuda_tests driver -k driver "$fresh"
  cuda_tests devices -k "devices or device_of" "$fresh" tests/test_cuda_streams.py
  local tool
  for tool in memcheck racecheck initcheck synccheck; do
    sanitize "$tool"
  done
  bench bench roi_align --no-compile
  bench half roi_align --no-compile --dtype float16 bfloat16
  bench multiscale multiscale --no-compile --dtype float32 float16 bfloat16
  bench deterministic roi_align --no-compile --deterministic on \
    --case p2_1000_boxes_7x7 p2_1000_boxes_14x14 c4 --dtype float32 float16
  step curves bash -c curves
  bench compiled roi_align --case p2_7x7 p2_14x14 --dtype float32
  step kernels bash -c kernels
  step ratios "$python" benchmarks/check_ratios.py --device cuda
  may_fail=1 step ncu bash -c counters
  step model "$python" examples/train_mrrcnn.py --quick --device cuda \
    --output-dir build/gpu_check_model
  printf '\n'
  printf '%s\n' "${summary[@]}" "$failures failed"
  return "$failures"
}

main 2>&1 | tee -a "$folder/report.txt"
exit "${PIPESTATUS[0]}"
