"""scripts/gpu_check.sh with fake tools that only record their command lines."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("nvidia-smi", "compute-sanitizer", "ncu", "python")

# FAIL and HANG are patterns of command lines, MISSING modules that Python lacks.
FAKE = """#!/bin/bash
line="$(basename "$0") $*"
echo "$line" >>"$CALLS"
[[ -n $HANG && $line == *$HANG* ]] && sleep 30
[[ -n $FAIL && $line == *$FAIL* ]] && exit 3
[[ $line == *profile_kernels* ]] && cat >/dev/null # must not consume the script's input
case "$line" in
  *find_spec*)
    found=()
    for name in $MISSING; do [[ " $line " == *" $name "* ]] && found+=("$name"); done
    echo "${found[*]}" ;;
  *get_device_capability*) echo 9.0 ;;
  *build_ext*) echo "ptxas info    : Compiling entry function 'kernel' for 'sm_90'" ;;
  *--json*) echo '{"case": "a row"}' >"$(sed 's/.*--json \\([^ ]*\\).*/\\1/' <<<"$line")" ;;
  compute-sanitizer*) shift 6 && "$@" ;;
  ncu*) while [[ $1 != */python ]]; do shift; done && "$@" ;;
esac
"""


class Check:
    """A copy of the script's surroundings, and its tools."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "repository"
        (self.root / "benchmarks" / "results").mkdir(parents=True)
        (self.root / "scripts").mkdir()
        script = ROOT / "scripts" / "gpu_check.sh"
        (self.root / "scripts" / script.name).write_text(script.read_text())
        self.tools = folder / "tools"
        self.tools.mkdir()
        for name in TOOLS:
            (self.tools / name).write_text(FAKE)
            (self.tools / name).chmod(0o755)
        self.out = folder / "out"
        self.calls = folder / "calls"

    def run(self, **environment: str) -> int:
        self.calls.write_text("")
        variables = {"PATH": f"{self.tools}:/usr/bin:/bin", "CUDA_HOME": "/nowhere"}
        variables |= {"FAIL": "", "HANG": "", "MISSING": "", "CALLS": str(self.calls)}
        command = ["bash", str(self.root / "scripts" / "gpu_check.sh")]
        command += [str(self.tools / "python"), str(self.out)]
        result = subprocess.run(
            command, env=variables | environment, capture_output=True, text=True, timeout=60
        )
        self.output = result.stdout + result.stderr
        return result.returncode

    @property
    def report(self) -> str:
        return (self.out / "report.txt").read_text()

    def summary(self) -> dict[str, str]:
        """Step: outcome."""
        lines = self.report.splitlines()
        end = [line.split(maxsplit=3) for line in lines[lines.index("") :] if " s  " in line]
        return {step: outcome for step, _, _, outcome in end}


@pytest.fixture
def check(tmp_path: Path) -> Check:
    return Check(tmp_path)


SANITIZERS = ["memcheck", "racecheck", "initcheck", "synccheck"]
BENCHMARKS = ["bench", "half", "multiscale", "deterministic", "curves", "compiled"]
CORRECTNESS = ["instances", "tests", "gradcheck", "capture", "jit", "driver", "devices"]
STEPS = ["machine", "build", "ptxas", *CORRECTNESS, *SANITIZERS, *BENCHMARKS]
STEPS += ["kernels", "ncu"]


def test_all_steps_pass_and_leave_few_files(check: Check) -> None:
    assert check.run() == 0, check.output
    assert list(check.summary()) == STEPS and set(check.summary().values()) == {"passed"}
    assert check.report.endswith("0 failed\n")
    files = list(check.out.rglob("*"))
    assert len(files) <= 8 and all(file.is_file() for file in files)
    assert list((check.root / "benchmarks" / "results").iterdir()) == []


def test_each_tool_is_asked_for_what_its_step_says(check: Check) -> None:
    assert check.run() == 0
    calls = check.calls.read_text()
    for tool in SANITIZERS:
        assert f"compute-sanitizer --tool {tool} --error-exitcode" in calls
    assert calls.count("\npython scripts/profile_kernels.py") == 5
    assert f"python scripts/kernel_times.py --json {check.out}/kernels.jsonl" in calls
    assert "python scripts/ptxas_report.py" in calls
    for curve in ("boxes", "channels", "bins"):
        assert f"--curve {curve}" in calls
    assert (check.out / "curves.jsonl").read_text().count("a row") == 3


def test_correctness_comes_first_then_sanitizers_then_ratios_then_counters(check: Check) -> None:
    assert check.run(STEPS=" ".join([*reversed(STEPS), "ratios"])) == 0
    order = list(check.summary())
    assert order[3 : 3 + len(CORRECTNESS)] == CORRECTNESS
    last = [order.index(step) for step in (CORRECTNESS[-1], SANITIZERS[-1], "ratios", "ncu")]
    assert last == sorted(last) and order.index("bench") > order.index(SANITIZERS[-1])


def test_the_build_has_ptx_for_the_step_that_compiles_it(check: Check) -> None:
    (check.tools / "python").write_text(FAKE + "env >>$CALLS\n")
    assert check.run(STEPS="build") == 0
    assert "TORCH_CUDA_ARCH_LIST=9.0+PTX" in check.calls.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("step", ["instances", "capture", "jit", "driver", "devices"])
def test_each_step_of_its_own_selects_tests(step: str, check: Check) -> None:
    assert check.run(STEPS=step) == 0
    (line,) = re.findall(r"^python -m pytest (.*)$", check.calls.read_text(), re.MULTILINE)
    chosen = re.search(r"-k (.*?) (?=tests/)", line)  # several words were one argument
    options = line.replace(chosen[0], "").split() if chosen else line.split()
    options += ["-k", chosen[1]] if chosen else []
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    least = {"instances": 100, "capture": 2, "jit": 1, "driver": 1, "devices": 3}[step]
    assert run.stdout.count("::test_") >= least, run.stdout + run.stderr


@pytest.mark.slow
def test_every_file_option_and_case_it_names_exists(check: Check) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "bench_roi_align.py", "--help"]
    cases = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    check.run(STEPS=" ".join([*STEPS, "model", "ratios"]))
    for line in check.calls.read_text().splitlines():
        words = line.split()
        if words[0] != "python" or words[1].startswith("-"):
            continue
        assert (ROOT / words[1]).is_file(), line
        source = (ROOT / words[1]).read_text()
        if words[1] == "examples/train_mrrcnn.py":
            source += (ROOT / "examples" / "training" / "options.py").read_text()
        if words[1].startswith("benchmarks/bench_"):
            source = (ROOT / "benchmarks" / "runner.py").read_text()
        if words[1] == "scripts/kernel_times.py":
            source += (ROOT / "benchmarks" / "runner.py").read_text()
        for name in re.findall(r"\bp\d\w*|\bc4\b", line):
            assert f"\n  {name} " in cases, line
        for option in (word for word in words[2:] if word.startswith("--")):
            assert option == "--inplace" or f'"{option}"' in source, line


def test_failures_are_counted_and_the_other_steps_still_run(check: Check) -> None:
    assert check.run(FAIL="--tool racecheck") == 1
    assert check.summary()["racecheck"] == "FAILED, exit 3"
    assert check.summary()["curves"] == "passed" and len(check.summary()) == len(STEPS)
    assert check.run(FAIL="-m pytest") == len(CORRECTNESS + SANITIZERS)
    assert check.run(FAIL="setup.py", STEPS="build tests") == 1
    assert check.run(FAIL="--curve channels", STEPS="curves") == 1


def test_ptxas_needs_a_build_that_compiled(check: Check) -> None:
    assert check.run(STEPS="ptxas") == 1
    assert "no build here has compiled the kernels" in check.report
    assert check.run(STEPS="build") == 0
    assert check.run(STEPS="ptxas") == 0


def test_counters_may_fail_but_are_told(check: Check) -> None:
    assert check.run(FAIL="ncu", STEPS="ncu kernels") == 0
    assert check.summary()["ncu"] == "FAILED, exit 3 (permitted)"
    (check.tools / "ncu").unlink()
    assert check.run(STEPS="ncu") == 0
    assert "no such command, exit 127 (permitted)" in check.report


def test_a_missing_module_fails_the_steps_that_need_it_and_is_named(check: Check) -> None:
    assert check.run(MISSING="torchvision", STEPS="machine build bench kernels model") == 3
    outcomes = check.summary()
    assert [step for step in outcomes if outcomes[step] != "passed"] == [
        "bench",
        "kernels",
        "model",
    ]
    assert outcomes["bench"] == "NOT STARTED: no module torchvision; WHEELS can bring it"
    assert check.run(MISSING="tqdm", STEPS="bench kernels ncu model") == 1
    assert check.run(MISSING="hypothesis", STEPS="tests jit gradcheck racecheck ptxas half") == 4
    assert check.run(MISSING="pybind11", STEPS="build") == 1
    assert check.run(MISSING="pycocotools PIL", STEPS="compiled model ratios") == 1
    assert "NOT STARTED: no module pycocotools PIL" in check.summary()["model"]


def test_wheels_are_unpacked_beside_the_packages_of_python(check: Check) -> None:
    assert check.run(STEPS="machine") == 0
    assert ".whl" not in check.calls.read_text()
    for folder in ("wheels", "others"):
        (check.root / folder).mkdir()
        (check.root / folder / "one.whl").touch()
    assert check.run(STEPS="machine") == 0
    assert "python -m zipfile -e wheels/one.whl" in check.calls.read_text()
    assert check.run(STEPS="machine", WHEELS="others") == 0
    assert "python -m zipfile -e others/one.whl" in check.calls.read_text()


def test_a_missing_sanitizer_is_a_failure(check: Check) -> None:
    (check.tools / "compute-sanitizer").unlink()
    assert check.run(STEPS="memcheck") == 1
    assert "FAILED: no such command" in check.summary()["memcheck"]


def test_a_step_out_of_time_is_told_and_the_rest_goes_on(check: Check) -> None:
    assert check.run(HANG="--tool memcheck", STEPS="memcheck racecheck", STEP_SECONDS="1") == 1
    assert check.summary() == {"memcheck": "OUT OF TIME after 1 s", "racecheck": "passed"}


def test_the_report_is_complete_when_all_time_is_spent(check: Check) -> None:
    status = check.run(HANG="--tool", STEPS="memcheck racecheck bench", TOTAL_SECONDS="1")
    assert status == 3
    assert check.summary()["memcheck"].startswith("OUT OF TIME")
    assert check.summary()["bench"] == "NOT REACHED within 1 s"
    assert check.report.endswith("3 failed\n")


def test_rows_are_recorded_when_asked_for(check: Check) -> None:
    results = check.root / "benchmarks" / "results"
    assert check.run(STEPS="bench multiscale", RECORD="1") == 0
    names = {"recorded-bench-cuda.jsonl", "recorded-multiscale-cuda.jsonl"}
    assert {path.name for path in results.iterdir()} == names
    for path in results.iterdir():
        path.unlink()
    assert check.run(STEPS="bench", RECORD="1", FAIL="bench_roi_align") == 1
    assert check.run(STEPS="multiscale", RECORD="1", FAIL="--json") == 1
    assert list(results.iterdir()) == []


def test_recorded_rows_are_kept_by_git() -> None:
    command = ["git", "check-ignore", "--quiet"]
    path = "benchmarks/results/recorded-bench-cuda.jsonl"
    try:
        inside = subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True)
    except OSError:
        pytest.skip("needs git")
    if inside.returncode:
        pytest.skip("needs a git repository around the sources")
    assert subprocess.run([*command, path], cwd=ROOT).returncode == 1
    ignored = "benchmarks/results/roi_align.jsonl"
    assert subprocess.run([*command, ignored], cwd=ROOT).returncode == 0


def test_an_unknown_step_is_refused(check: Check) -> None:
    assert check.run(STEPS="build test") == 64
    assert "no step test; there are: machine build" in check.output
    assert check.calls.read_text() == ""


def test_two_runs_share_a_report(check: Check) -> None:
    assert check.run(STEPS="tests") == 0 and check.run(STEPS="memcheck") == 0
    assert check.report.count("== gpu_check of ") == 2


def test_environment_of_the_tests(check: Check) -> None:
    """A check must not skip tests for lack of a GPU or of memory."""
    (check.tools / "python").write_text(FAKE + "env >>$CALLS\n")
    assert check.run(STEPS="tests") == 0
    calls = check.calls.read_text()
    assert "SHAPE_ROI_ALIGN_REQUIRE_CUDA=1" in calls and "SHAPE_ROI_ALIGN_TEST_LARGE=1" in calls
    # built in place, not installed
    assert f"PYTHONPATH={check.root}:" in calls


def test_the_splits_of_its_documentation_cover_all_steps() -> None:
    lines = (ROOT / "scripts" / "gpu_check.sh").read_text().splitlines()
    splits = [
        line.split('"')[1].split()
        for line in lines
        if re.match(r'#   (WORKERS=\d+ )?STEPS="', line)
    ]
    assert {step for split in splits for step in split} >= {*STEPS, "model"}
    assert all("build" in split for split in splits)


def test_it_can_be_executed() -> None:
    assert os.access(ROOT / "scripts" / "gpu_check.sh", os.X_OK)
