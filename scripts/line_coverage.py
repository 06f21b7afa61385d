#!/usr/bin/env python3
"""Lines of csrc/ that the fuzzers and the tests execute, each alone and together.

    python scripts/line_coverage.py --seconds 240

Prints a table in Markdown, one row per folder, and writes the lines that nothing executes to
build/coverage/uncovered.txt. Needs what `make fuzz` needs, and git. The fuzzers run over
fuzz/corpus/ and new inputs. Only the tests that call the kernels most run: on a copy of the sources
built with Clang's source-based coverage, and on the CUDA kernels compiled for the host. A line
counts as executed if any instance of a template executes it. Files for nvcc are not compiled; their
lines of code count as not executed. Takes some 20 minutes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import stat
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "fuzz"))
import run as fuzz  # noqa: E402

FOLDER = ROOT / "build" / "coverage"
PROGRAMS = FOLDER / "programs"
COVERAGE = ["-fprofile-instr-generate", "-fcoverage-mapping"]

CPU_TESTS = (
    *("test_forward", "test_gradients", "test_layouts", "test_few_channels", "test_dtypes"),
    *("test_multiscale", "test_bad_input", "test_geometry", "test_crowds"),
    *("test_cpu_capabilities", "test_main"),
)
HOST_TESTS = ("test_cuda_on_host", "test_cuda_support")
# Without sanitizers, and without the tests that expect a sanitizer's report.
NOT_SANITIZERS = "not race and not faults and not threads"

# A compiler for setup.py and for the tests: Clang with coverage, without sanitizers. Keeps a copy
# of each program, because the tests remove theirs.
WRAPPER = """#!/bin/bash
arguments=()
is_program=1
output=
previous=
for argument in "$@"; do
  case "$argument" in -fsanitize*|-fno-sanitize*) continue ;; -c|-fsyntax-only) is_program= ;; esac
  [[ $previous == -o ]] && output=$argument
  previous=$argument
  arguments+=("$argument")
done
{compiler} "${{arguments[@]}}" {flags} || exit
if [[ -n $is_program && -f $output ]]; then
  cp "$output" "{programs}/$(basename "$output")-$(cksum <<<"$*" | cut -d' ' -f1)"
fi
"""

Lines = dict[str, set[int]]  # by file, from the root


class Found:
    """Executable lines, and those that ran."""

    def __init__(self) -> None:
        self.executable: Lines = defaultdict(set)
        self.executed: Lines = defaultdict(set)

    def add(self, report: str) -> None:
        """report: in the format of lcov."""
        file = None
        for line in report.splitlines():
            if line.startswith("SF:"):
                match = re.search(r"(?:^|/)(csrc/.+)$", os.path.normpath(line[3:]))
                file = match and match[1]
            elif file and line.startswith("DA:"):
                number, count = map(int, line[3:].split(",")[:2])
                self.executable[file].add(number)
                if count:
                    self.executed[file].add(number)


def run(command: Sequence[str | Path], **options: object) -> str:
    print(" ".join(map(str, command))[:200], file=sys.stderr, flush=True)
    done = subprocess.run(command, text=True, capture_output=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def tool(compiler: str, name: str) -> str:
    """A program of the release of Clang."""
    return run([compiler, f"--print-prog-name={name}"]).strip()


def report(compiler: str, programs: Iterable[Path], profiles: Path) -> Found:
    """profiles: a folder of *.profraw."""
    merged = profiles / "merged.profdata"
    raw = sorted(profiles.glob("*.profraw"))
    run([tool(compiler, "llvm-profdata"), "merge", "-sparse", "-o", merged, *raw])
    found = Found()
    command = [tool(compiler, "llvm-cov"), "export", "-format=lcov", f"-instr-profile={merged}"]
    for program in programs:
        found.add(run([*command, program], cwd=ROOT))
    return found


# ---- what runs -----------------------------------------------------------------------------------


def covered(program: fuzz.Program) -> fuzz.Program:
    """The fuzzer's harness calls AddressSanitizer; the kernels are compiled without."""

    def with_coverage(flags: list[str]) -> list[str]:
        # Fields that tell AddressSanitizer of fibers.
        unused = ["-Wno-unused-private-field"] * ("-DSHAPE_ROI_ALIGN_CUDA_ON_HOST" in flags)
        return [*(flag for flag in flags if flag not in fuzz.SANITIZERS), *COVERAGE, *unused]

    return program._replace(
        name=f"coverage-{program.name}",
        sources={source: with_coverage(flags) for source, flags in program.sources.items()},
        link=[*COVERAGE, "-fsanitize=address"],
    )


def run_fuzzers(compiler: str, seconds: int) -> Found:
    profiles = FOLDER / "fuzzers"
    profiles.mkdir()
    share = seconds // len(fuzz.TARGETS)
    for target in fuzz.TARGETS.values():
        name = f"coverage-{target.name}"
        shutil.rmtree(fuzz.BUILD / name, ignore_errors=True)
        os.environ["LLVM_PROFILE_FILE"] = str(profiles / f"{target.name}.profraw")
        with_coverage = target._replace(name=name, program=covered(target.program))
        fuzz.run(with_coverage, compiler, seconds=share, inputs=0, seed=1)
    del os.environ["LLVM_PROFILE_FILE"]
    programs = {fuzz.build(covered(target.program), compiler) for target in fuzz.TARGETS.values()}
    return report(compiler, sorted(programs), profiles)


def copy_sources() -> Path:
    tree = FOLDER / "tree"
    listed = run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    return tree


def run_tests(compiler: str) -> Found:
    tree = copy_sources()
    PROGRAMS.mkdir()
    profiles = FOLDER / "tests"
    profiles.mkdir()
    wrapper = FOLDER / "clang++"
    flags = " ".join(["-O1", *COVERAGE, "-Wno-error", "-Wno-pass-failed", "-Wno-unknown-pragmas"])
    wrapper.write_text(WRAPPER.format(compiler=compiler, flags=flags, programs=PROGRAMS))
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {
        "CC": str(wrapper),
        "CXX": str(wrapper),
        "SHAPE_ROI_ALIGN_CUDA": "0",
        "PYTHONPATH": str(tree),
        # Merged where the same program runs again.
        "LLVM_PROFILE_FILE": str(profiles / "%m.profraw"),
    }
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    run(build, cwd=tree, env=environment)
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    for tests in (CPU_TESTS, HOST_TESTS):
        files = [f"tests/{name}.py" for name in tests]
        command = [*pytest, "-k", NOT_SANITIZERS, *files]
        done = subprocess.run(command, cwd=tree, env=environment, text=True, capture_output=True)
        print(done.stdout[-500:], file=sys.stderr, flush=True)
    return report(compiler, sorted(PROGRAMS.iterdir()), profiles)


# ---- the report ----------------------------------------------------------------------------------


def is_for_nvcc(path: Path) -> bool:
    return path.suffix == ".cu" or "#include <cuda_runtime.h>" in path.read_text()


def lines_of_code(path: Path) -> set[int]:
    """Lines other than blank ones, comments, directives and lone braces."""
    lines = enumerate(path.read_text().splitlines(), 1)
    return {number for number, line in lines if not re.match(r"\s*($|//|#|[{}]+;?$)", line)}


def sources() -> list[str]:
    files = (path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def spans(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found


def table(executable: Lines, by_fuzzers: Lines, by_tests: Lines) -> str:
    folders = defaultdict(list)
    for file in executable:
        folders[os.path.dirname(file)].append(file)
    together = {file: by_fuzzers[file] | by_tests[file] for file in executable}

    def row(name: str, files: Collection[str]) -> str:
        total = sum(len(executable[file]) for file in files)
        shares = [
            sum(len(executable[file] & executed[file]) for file in files) / max(total, 1)
            for executed in (by_fuzzers, by_tests, together)
        ]
        return f"| {name} | {total} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |"

    return "\n".join(
        [
            "| folder | lines | fuzzers | tests | together |",
            "| --- | ---: | ---: | ---: | ---: |",
            *(row(f"`{folder}`", files) for folder, files in sorted(folders.items())),
            row("all", executable),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=int, default=240, help="seconds of all fuzzers; default: %(default)s"
    )
    arguments = parser.parse_args()
    compiler = fuzz.require_compiler()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    fuzzers = run_fuzzers(compiler, arguments.seconds)
    tests = run_tests(compiler)
    executable: Lines = {}
    for file in sources():
        if is_for_nvcc(ROOT / file):
            executable[file] = lines_of_code(ROOT / file)
        elif lines := fuzzers.executable[file] | tests.executable[file]:
            executable[file] = lines
    print(table(executable, fuzzers.executed, tests.executed))
    with (FOLDER / "uncovered.txt").open("w") as out:
        for file, lines in executable.items():
            text = (ROOT / file).read_text().splitlines()
            for first, last in spans(lines - fuzzers.executed[file] - tests.executed[file]):
                print(f"{file}:{first}-{last}: {text[first - 1].strip()}", file=out)
    print(f"not executed: {(FOLDER / 'uncovered.txt').relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
