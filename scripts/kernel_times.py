"""Times every CUDA kernel of forward and backward passes, beside torchvision's.

python scripts/kernel_times.py --case p2_7x7 c4 --json kernels.jsonl

A row has the median time of one launch of a kernel, or of one copy or fill, in microseconds, from
torch.profiler. Each pass starts with a cold L2 cache.
"""

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from cases import SINGLE_LEVEL, Case, make_inputs
from providers import OURS, YARDSTICK, single_level
from report import describe_run
from runner import DTYPES, LAYOUTS, add_feature_arguments, deterministic_algorithms
from timing import Call, copy_bandwidth, larger_than_the_cache, make_call

PASSES = ("forward", "backward")
FLUSH = "CUDAFunctorOnSelf_add<unsigned char>"  # the kernel that overwrites the cache


def main() -> None:
    arguments = parse()
    device = torch.device("cuda")
    identity = describe_run(device, copy_bandwidth(device))
    with arguments.json.open("w") as file:
        for case, dtype, layout in product(arguments.case, arguments.dtype, arguments.layout):
            for row in times_of(BY_NAME[case], dtype, layout, arguments, device):
                file.write(json.dumps(row | {"identity": identity}) + "\n")
                print(
                    f"{case} {dtype} {layout} {row['provider']} {row['pass']}: "
                    f"{row['microseconds']:.1f} us  {row['kernel']}",
                    flush=True,
                )
            file.flush()


BY_NAME = {case.name: case for case in SINGLE_LEVEL}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--case",
        nargs="+",
        choices=BY_NAME,
        metavar="CASE",
        default=["p2_7x7"],
        help=f"among {', '.join(BY_NAME)}; default: p2_7x7",
    )
    add_feature_arguments(parser)
    parser.add_argument(
        "--provider",
        nargs="+",
        metavar="NAME",
        default=[OURS, YARDSTICK],
        help="implementations to time; default: this library and torchvision",
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="use torch's deterministic algorithms"
    )
    parser.add_argument("--rounds", type=int, default=10, help="passes; default: %(default)s")
    parser.add_argument("--json", type=Path, required=True, help="JSON lines file to write")
    return parser.parse_args()


def times_of(
    case: Case, dtype: str, layout: str, arguments: argparse.Namespace, device: torch.device
) -> list[dict[str, object]]:
    inputs = make_inputs(case, dtype=DTYPES[dtype], device=device, memory_format=LAYOUTS[layout])
    rows: list[dict[str, object]] = []
    with deterministic_algorithms(arguments.deterministic):
        for provider in single_level():
            if provider.name not in arguments.provider or not provider.takes(
                case, DTYPES[dtype], device
            ):
                continue
            for mode in PASSES:
                call = make_call(provider.build(case), provider.prepare(inputs), mode)
                for kernel, microseconds in medians_of(call, arguments.rounds, device):
                    rows.append(
                        {
                            "case": case.name,
                            "problem": case.problem(),
                            "provider": provider.name,
                            "pass": mode,
                            "dtype": dtype,
                            "layout": layout,
                            "deterministic": arguments.deterministic,
                            "kernel": kernel,
                            "launches": 1,
                            "microseconds": round(microseconds, 3),
                        }
                    )
    return rows


def medians_of(call: Call, rounds: int, device: torch.device) -> Iterator[tuple[str, float]]:
    """The kernel and the microseconds of each launch of a call."""
    cache = larger_than_the_cache(device)
    for _ in range(3):
        call()
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(rounds):
            cache.add_(1)
            call()
        torch.cuda.synchronize(device)
    times = defaultdict(list)
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        if event.device_type == torch.autograd.DeviceType.CUDA and FLUSH not in event.name:
            times[short_name(event.name)].append(event.device_time)
    for kernel, durations in times.items():
        for of_launch in by_launch(durations, rounds):
            yield kernel, statistics.median(of_launch)


def by_launch(durations: list[float], rounds: int) -> list[list[float]]:
    """The durations of `rounds` equal calls, in order, for each launch of a call."""
    launches = len(durations) // rounds
    return [durations[i::launches] for i in range(launches)]


def short_name(kernel: str) -> str:
    """Without arguments and namespaces; of torch's kernels, without template arguments too."""
    name = kernel.removeprefix("void ").replace("(anonymous namespace)::", "")
    end = "<" if name.startswith("at::") else "("
    return re.sub(r"^(shape_roi_align::cuda|vision::ops)::", "", name.split(end)[0].strip())


if __name__ == "__main__":
    main()
