#!/usr/bin/env python3
"""Builds and runs the fuzzers. Exits with 1 if they find a failure.

    python fuzz/run.py                         all targets, 5 minutes in total
    python fuzz/run.py --targets cuda --inputs 50000
    python fuzz/run.py --reproduce build/fuzz/cpu-avx2/findings/crash-...
    python fuzz/run.py --keep                  also keeps a few new inputs in fuzz/corpus/

Needs Clang with its fuzzer, AddressSanitizer and UndefinedBehaviorSanitizer libraries (Debian:
clang-16, libclang-rt-16-dev), as `clang++`, `clang++-16` or in CLANGXX. Needs neither torch nor a
GPU. Writes programs, corpora and findings to build/fuzz/. --record adds the runs to a JSON list.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

ROOT = Path(__file__).resolve().parents[1]
FUZZ = ROOT / "fuzz"
BUILD = ROOT / "build" / "fuzz"
COMPILERS = (os.environ.get("CLANGXX", ""), "clang++-16", "clang++")

SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
FLAGS = [
    *("-std=c++20", "-O1", "-g1", "-Wall", "-Wextra", "-Werror"),
    *("-Wno-unknown-pragmas", "-Wno-pass-failed", "-Wno-missing-field-initializers"),
    # No fused multiply-adds, unlike in setup.py. Sanitizer checks split basic blocks, so Clang
    # would fuse in only some instances of a kernel, and results would depend on the number of
    # threads.
    *("-fno-math-errno", "-ffp-contract=off"),
    *("-fsanitize=fuzzer-no-link", *SANITIZERS),
    *("-Ifuzz/stand_in", "-Ifuzz", "-Icsrc"),
]
# The oracle rounds every operation.
ORACLE_FLAGS = ["-std=c++20", "-O2", "-g1", "-ffp-contract=off", "-Ifuzz/stand_in", "-Icsrc"]
# Tracing comparisons would take half of the time, mostly in the emulation of CUDA.
HOST_CUDA_FLAGS = [
    *FLAGS,
    "-fno-sanitize-coverage=trace-cmp",
    "-DSHAPE_ROI_ALIGN_CUDA_ON_HOST",
    "-Itests/host_cuda",
]

# Settings of libFuzzer. A call takes about a millisecond.
# Resident memory has no limit, because its peak is inherited from the parent process.
MEMORY = ["-rss_limit_mb=0", "-malloc_limit_mb=2048"]
LIMITS = ["-max_len=320", "-len_control=0", "-timeout=20", *MEMORY]
FINDINGS = ("crash-", "leak-", "timeout-", "oom-")
KEPT_BYTES = 60_000  # size of a corpus in fuzz/corpus/, at most


class Program(NamedTuple):
    name: str
    sources: dict[str, list[str]]  # with the compiler flags of each
    corpus: str  # a folder of fuzz/corpus/
    link: Sequence[str] = SANITIZERS


class Target(NamedTuple):
    name: str
    program: Program
    instruction_set: str | None = None


def cpu_sources() -> Iterator[str]:
    for path in sorted((ROOT / "csrc" / "cpu").rglob("*.cpp")):
        if path.name != "register.cpp":  # registers the operators with torch
            yield str(path.relative_to(ROOT))


COMMON = {"fuzz/call.cpp": FLAGS, "fuzz/check.cpp": FLAGS, "fuzz/oracle.cpp": ORACLE_FLAGS}
CPU = Program(
    "cpu", {**COMMON, "fuzz/cpu.cpp": FLAGS, **dict.fromkeys(cpu_sources(), FLAGS)}, "cpu"
)
CUDA = Program("cuda", {**COMMON, "fuzz/cuda_on_host.cpp": HOST_CUDA_FLAGS}, "cuda")
TARGETS = {
    target.name: target
    for target in (
        *(Target(f"cpu-{name}", CPU, name) for name in ("portable", "avx2", "avx512")),
        Target("cuda", CUDA),
    )
}


class Run(NamedTuple):
    """A line of record.json."""

    target: str
    inputs: int
    findings: int
    edges: int  # edges of the control flow graph that were covered
    seconds: float
    build: str
    commit: str


def find_compiler() -> str | None:
    """The first Clang that can link a fuzzer."""
    program = (
        'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
    )
    for name in filter(None, COMPILERS):
        compiler = shutil.which(name)
        if compiler is None:
            continue
        command = [compiler, "-fsanitize=fuzzer", *SANITIZERS, "-x", "c++", "-", "-o", os.devnull]
        if not subprocess.run(command, input=program, text=True, capture_output=True).returncode:
            return compiler
    return None


def is_current(made: Path) -> bool:
    """Whether a file is newer than all files that its dependency file names."""
    dependencies = made.with_suffix(".d")
    if not made.exists() or not dependencies.exists():
        return False
    paths = dependencies.read_text().replace("\\\n", " ").split(": ", 1)[1].split()
    return all(
        (ROOT / path).exists() and (ROOT / path).stat().st_mtime <= made.stat().st_mtime
        for path in paths
    )


def build(program: Program, compiler: str) -> Path:
    folder = BUILD / "objects"
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for source, flags in program.sources.items():
        command = [compiler, *flags, "-MMD", "-c", source]
        kind = crc32(" ".join(command).encode())
        made = folder / f"{source.replace('/', '_')}-{kind:08x}.o"
        objects.append(made)
        if not is_current(made):
            print(f"compiling {source}", file=sys.stderr, flush=True)
            subprocess.run([*command, "-o", str(made)], cwd=ROOT, check=True)
    linked = BUILD / f"fuzz-{program.name}"
    newest = max(path.stat().st_mtime for path in objects)
    if not linked.exists() or linked.stat().st_mtime < newest:
        command = [compiler, "-fsanitize=fuzzer", *program.link, *map(str, objects)]
        subprocess.run([*command, "-o", str(linked)], cwd=ROOT, check=True)
    return linked


def environment(target: Target) -> dict[str, str]:
    is_on_host = target.program.corpus == CUDA.corpus
    return os.environ | {
        "SHAPE_ROI_ALIGN_CPU_CAPABILITY": target.instruction_set or "",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # AddressSanitizer would give a second stack to each fiber of a CUDA block on the host.
        "ASAN_OPTIONS": f"detect_stack_use_after_return={int(not is_on_host)}",
    }


def output_of(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def commit() -> str:
    changed = output_of("git", "status", "--porcelain", "--", "csrc", "fuzz/*.cpp", "fuzz/*.h")
    return output_of("git", "rev-parse", "HEAD") + ("+changes" if changed else "")


def run(target: Target, compiler: str, *, seconds: int, inputs: int, seed: int) -> Run | None:
    """None if the processor lacks the instruction set. seconds, inputs: 0 means no limit."""
    program = build(target.program, compiler)
    folder = BUILD / target.name
    corpus, findings = folder / "corpus", folder / "findings"
    for path in (corpus, findings):
        path.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-artifact_prefix={findings}/"]
    options += [f"-runs={inputs}"] if inputs else []
    corpora = [corpus, FUZZ / "corpus" / target.program.corpus]
    command = [
        str(program),
        *LIMITS,
        *options,
        "-print_final_stats=1",
        "-print_funcs=0",
        *(str(corpus) for corpus in corpora if corpus.exists()),
    ]
    log_path = folder / "log"
    start = time.monotonic()
    with log_path.open("w") as log:
        code = subprocess.run(command, stderr=log, env=environment(target)).returncode
    elapsed = time.monotonic() - start
    text = log_path.read_text()
    chosen = re.search(r"^instruction set: (\w+)", text, re.MULTILINE)
    if target.instruction_set and (chosen is None or chosen[1] != target.instruction_set):
        print(f"{target.name}: this processor lacks the instruction set", file=sys.stderr)
        return None
    found = [path for path in set(findings.iterdir()) - before if path.name.startswith(FINDINGS)]
    if code and not found:
        sys.exit(f"{target.name} ended with {code}: {log_path}")
    for path in found:
        print(f"{target.name}: found {path}, see {log_path}", file=sys.stderr)
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
    last = re.findall(r"^#(\d+)\s.*? cov: (\d+)", text, re.MULTILINE)
    return Run(
        target=target.name,
        inputs=int(executed[1] if executed else last[-1][0] if last else 0),
        findings=len(found),
        edges=int(last[-1][1]) if last else 0,
        seconds=round(elapsed, 1),
        build=output_of(compiler, "--version").splitlines()[0] + " " + " ".join(SANITIZERS),
        commit=commit(),
    )


def keep(program: Program) -> None:
    """Merges new inputs into a corpus in fuzz/corpus/; keeps a few that cover the same edges."""
    kept, merged = FUZZ / "corpus" / program.corpus, BUILD / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    targets = [target for target in TARGETS.values() if target.program == program]
    corpora = [kept, *(BUILD / target.name / "corpus" for target in targets)]
    command = [str(BUILD / f"fuzz-{program.name}"), "-merge=1", "-use_counters=0", str(merged)]
    subprocess.run(
        [*command, *(str(corpus) for corpus in corpora if corpus.exists())],
        env=environment(targets[-1]),
        capture_output=True,
        check=True,
    )
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    left = KEPT_BYTES
    for path in sorted(merged.iterdir(), key=lambda path: path.stat().st_size):
        left -= path.stat().st_size
        if left >= 0:
            shutil.copy(path, kept)
    print(f"{kept.relative_to(ROOT)}: {len(list(kept.iterdir()))} inputs", file=sys.stderr)


def add_to_record(record: Path, runs: list[Run]) -> None:
    lines = json.loads(record.read_text()) if record.exists() else []
    lines += [one._asdict() for one in runs]
    record.write_text("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all"
    )
    parser.add_argument(
        "--seconds",
        type=int,
        default=300,
        help="for all targets together; 0: no limit; default: %(default)s",
    )
    parser.add_argument(
        "--inputs", type=int, default=0, help="for each target; 0, the default: no limit"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of libFuzzer; 0, the default: from the clock"
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="JSON list to which the runs are added"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep a few of the new inputs in fuzz/corpus/"
    )
    parser.add_argument(
        "--reproduce",
        type=Path,
        metavar="FILE",
        help="run one input, a file in the findings of its target",
    )
    return parser.parse_args()


def require_compiler() -> str:
    """Ends the process if :func:`find_compiler` finds no compiler."""
    compiler = find_compiler()
    if compiler is None:
        sys.exit(
            f"needs one of {', '.join(filter(None, COMPILERS))} with its fuzzer library (Debian: "
            "clang-16, libclang-rt-16-dev)"
        )
    return compiler


def main() -> None:
    arguments = parse()
    compiler = require_compiler()
    if arguments.reproduce:
        target = TARGETS[arguments.reproduce.resolve().parents[1].name]
        command = [build(target.program, compiler), arguments.reproduce]
        env = environment(target) | {"FUZZ_DESCRIBE": "1"}
        sys.exit(subprocess.run(command, env=env).returncode != 0)
    targets = [TARGETS[name] for name in arguments.targets]
    runs = []
    for target in targets:
        seconds = arguments.seconds // len(targets)
        done = run(target, compiler, seconds=seconds, inputs=arguments.inputs, seed=arguments.seed)
        if done:
            runs.append(done)
            print(json.dumps(done._asdict()), flush=True)
    if arguments.record:
        add_to_record(arguments.record, runs)
    if arguments.keep:
        for program in {target.program.name: target.program for target in targets}.values():
            keep(program)
    sys.exit(any(one.findings for one in runs))


if __name__ == "__main__":
    main()
