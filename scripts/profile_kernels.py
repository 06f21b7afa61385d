"""Runs one forward and one backward pass of a benchmark case for a profiler.

ncu --profile-from-start off python scripts/profile_kernels.py p2_7x7 --dtype float16
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from cases import SINGLE_LEVEL, make_inputs
from providers import ours
from runner import DTYPES, LAYOUTS, deterministic_algorithms
from timing import make_call


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [case.name for case in SINGLE_LEVEL]
    parser.add_argument("case", choices=names, metavar="CASE", help=f"one of {', '.join(names)}")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="features' dtype; default: %(default)s"
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="contiguous",
        help="memory format of the features; default: %(default)s",
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="use torch's deterministic algorithms"
    )
    parser.add_argument("--device", default="cuda", help="cuda or cpu; default: %(default)s")
    arguments = parser.parse_args()
    case = next(case for case in SINGLE_LEVEL if case.name == arguments.case)
    device = torch.device(arguments.device)
    inputs = make_inputs(
        case,
        dtype=DTYPES[arguments.dtype],
        device=device,
        memory_format=LAYOUTS[arguments.layout],
    )
    is_cuda = device.type == "cuda"
    with deterministic_algorithms(arguments.deterministic):
        calls = [make_call(ours(case), inputs, mode) for mode in ("forward", "backward")]
        for call in calls:
            call()
        if is_cuda:
            torch.cuda.synchronize(device)
            torch.cuda.profiler.start()
        for call in calls:
            call()
        if is_cuda:
            torch.cuda.synchronize(device)
            torch.cuda.profiler.stop()
    print(f"{case.name}, {arguments.dtype}, {arguments.layout}", end="")
    print(", deterministic" if arguments.deterministic else "")


if __name__ == "__main__":
    main()
