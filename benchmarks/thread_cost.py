"""Measures the overhead of threads: CPU time relative to one thread, by number of threads.

With more threads, work is divided into smaller pieces, and each piece rebuilds the taps of its
boxes. The CPU time of a call, summed over its threads, shows this overhead on a machine of any
number of cores. Results must be the same bit for bit for every number of threads.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from cases import FEW_CHANNELS, SINGLE_LEVEL, Case, make_inputs
from providers import ours
from report import align
from runner import LAYOUTS
from timing import Call, make_call

DEFAULT_CASES = ("p3_7x7", "c4", "crop_224", "mask_targets")


def processor_seconds(call: Call, rounds: int) -> float:
    call()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def passes(case: Case, layout: str) -> dict[str, Call]:
    inputs = make_inputs(
        case,
        dtype=torch.float32,
        device=torch.device("cpu"),
        memory_format=LAYOUTS[layout],
    )
    pool = ours(case)
    return {mode: make_call(pool, inputs, mode) for mode in ("forward", "backward")}


def are_equal(results: object, expected: object) -> bool:
    """Tensors, or tuples of them."""
    if isinstance(results, Tensor) and isinstance(expected, Tensor):
        return torch.equal(results, expected)
    assert isinstance(results, tuple) and isinstance(expected, tuple)
    return all(map(torch.equal, results, expected))


def main() -> None:
    known = {case.name: case for case in (*SINGLE_LEVEL, *FEW_CHANNELS)}
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument(
        "--case",
        nargs="+",
        choices=known,
        metavar="NAME",
        default=list(DEFAULT_CASES),
        help=f"cases among {', '.join(known)}; default: {' '.join(DEFAULT_CASES)}",
    )
    parser.add_argument(
        "--threads",
        nargs="+",
        type=int,
        default=[2, 4, 8, 16, 64],
        help="numbers of threads; default: 2 4 8 16 64",
    )
    parser.add_argument(
        "--rounds", type=int, default=9, help="measurements per thread count; default: %(default)s"
    )
    arguments = parser.parse_args()
    numbers = [f"{threads} threads" for threads in arguments.threads]
    table = [["case", "layout", "pass", "one thread, ms", *numbers]]
    for name in arguments.case:
        for layout in LAYOUTS:
            for mode, call in passes(known[name], layout).items():
                torch.set_num_threads(1)
                expected, alone = call(), processor_seconds(call, arguments.rounds)
                line = [name, layout, mode, f"{alone * 1e3:.1f}"]
                for threads in arguments.threads:
                    torch.set_num_threads(threads)
                    if not are_equal(call(), expected):
                        raise SystemExit(f"{name}: results differ with {threads} threads")
                    line.append(f"{processor_seconds(call, arguments.rounds) / alone:.2f}")
                table.append(line)
    print(align(table))


if __name__ == "__main__":
    main()
