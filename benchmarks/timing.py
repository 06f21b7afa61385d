"""Measurements: time, peak memory, copy bandwidth and the least memory traffic of a case.

In each round every provider of a case is timed once, so a change in machine speed affects all of
them. The result is the median over rounds.
"""

import argparse
import ctypes
import functools
import math
import statistics
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from cases import Case, Inputs

MODES = ("forward", "backward", "forward+backward")

SHORTEST_SPAN = 2e-3  # seconds; on a CPU, quicker calls are timed several at a time
LONGEST_TOTAL = 5.0  # seconds; a provider that has taken longer is not timed again
MIN_ROUNDS = 3  # of every provider

Call = Callable[[], object]
Pool = Callable[[Inputs], Tensor]
Key = TypeVar("Key", bound=Hashable)


@dataclass
class Measurement:
    seconds: list[float] = field(default_factory=list)  # per call, one for each round
    peak_extra_bytes: int | None = None  # above the memory in use before; None: unknown
    failure: str = ""  # why `seconds` is empty

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def add_timing_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """--threads and --rounds of a benchmark on the CPU."""
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="CPU threads; default here: %(default)s",
    )
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="measurements per row; default: %(default)s"
    )


def make_call(pool: Pool, inputs: Inputs, mode: str) -> Call:
    """One call of `pool` in `mode`, with gradients of all leaves that the output depends on."""
    if mode == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return pool(inputs)

        return forward

    output = pool(inputs)
    grad = torch.ones_like(output)
    leaves = inputs.leaves()
    if mode == "backward":
        return lambda: torch.autograd.grad(
            output, leaves, grad, retain_graph=True, allow_unused=True
        )
    return lambda: torch.autograd.grad(pool(inputs), leaves, grad, allow_unused=True)


def make_replay(pool: Pool, inputs: Inputs, mode: str, device: torch.device) -> Call:
    """The call as a CUDA graph, which excludes CPU time."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    # Backward runs on the stream of its forward, so forward must run on the captured stream too.
    with torch.cuda.stream(stream):
        call = make_call(pool, inputs, mode)
        for _ in range(3):
            call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    torch.cuda.synchronize(device)
    return graph.replay


def measure(
    calls: dict[Key, Callable[[], Call]], device: torch.device, *, rounds: int
) -> dict[Key, Measurement]:
    """Makes and times each call. A call that raises gets a `failure` instead of times."""
    results = {key: Measurement() for key in calls}
    ready: dict[Key, tuple[Call, int]] = {}
    for key, make in calls.items():
        try:
            call = make()
            results[key].peak_extra_bytes = peak_extra_bytes(call, device)
            ready[key] = call, 1 if device.type == "cuda" else repeats_of(call)
        except Exception as error:  # any error of a provider or of its compiler
            results[key].failure = describe(error)
    for _ in range(rounds):
        for key, (call, repeats) in ready.items():
            seconds = results[key].seconds
            if len(seconds) < MIN_ROUNDS or sum(seconds) * repeats < LONGEST_TOTAL:
                seconds.append(time_calls(call, repeats, device))
    return results


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory, as other allocators do by default.

    Memory that glibc returns to the OS is page-faulted and zeroed when reused.

    Raises:
        OSError: the C library does not support this.
    """
    m_trim_threshold, m_mmap_threshold, most = -1, -3, 2**31 - 1
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except AttributeError:
        raise OSError("this C library has no mallopt") from None
    if not (mallopt(m_mmap_threshold, most) and mallopt(m_trim_threshold, most)):
        raise OSError("mallopt refused")


def repeats_of(call: Call) -> int:
    """Number of calls that take SHORTEST_SPAN on a CPU."""
    return min(max(math.ceil(SHORTEST_SPAN / time_calls(call, 1, torch.device("cpu"))), 1), 1000)


def describe(error: BaseException) -> str:
    """The first error of a chain, in one line. A failed capture of a graph hides what failed."""
    while error.__context__ is not None and not error.__suppress_context__:
        error = error.__context__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def time_calls(call: Call, repeats: int, device: torch.device) -> float:
    """Seconds per call. On CUDA between two events on the current stream, else wall clock."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Overwrites the L2 cache. The CPU enqueues the calls meanwhile.
        larger_than_the_cache(device).zero_()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats
    call()  # warm-up: brings the caches and the allocator to the steady state of a loop
    start_time = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start_time) / repeats


@functools.cache
def larger_than_the_cache(device: torch.device) -> Tensor:
    size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(max(size, 2**28), dtype=torch.uint8, device=device)


def peak_extra_bytes(call: Call, device: torch.device) -> int | None:
    """Peak memory of one call, result included, minus the memory in use before. Warms up first.

    On CUDA, the peak of the caching allocator. On a CPU, the peak resident memory of the process,
    which counts all touched pages, including pages that no tensor owns.
    """
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # unmap freed memory, so that its reuse is counted
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc(5)
    except OSError:
        return None
    before = resident_bytes("VmRSS")
    call()
    return max(resident_bytes("VmHWM") - before, 0)


def resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read plus written, of a torch copy far larger than the caches."""
    size = 2**30 if device.type == "cuda" else 2**28
    # Random, because all untouched pages map to one page of zeros, which stays in the cache.
    source = torch.empty(size // 8, dtype=torch.int64, device=device).random_()
    target = torch.empty_like(source)
    result = measure({"copy": lambda: lambda: target.copy_(source)}, device, rounds=7)
    return 2 * size / result["copy"].median


def least_traffic(case: Case, inputs: Inputs, pixels: int, mode: str, *, uses_maps: bool) -> int:
    """Bytes that every implementation must move in `mode`. `pixels`: feature pixels under boxes.

    Forward reads these pixels, the maps and the boxes once and writes the output. Backward reads
    the output gradient, the maps and the boxes and writes the gradients of these pixels and of the
    maps; the gradient of the maps also needs the features.
    """
    features = pixels * case.channels * inputs.features[0].itemsize
    maps = inputs.prob_maps.numel() * inputs.prob_maps.itemsize if uses_maps else 0
    boxes = inputs.rois.numel() * inputs.rois.itemsize
    output = case.num_rois * case.channels * case.num_bins * inputs.features[0].itemsize
    forward = features + maps + boxes + output
    backward = output + boxes + features + 2 * maps + (features if uses_maps else 0)
    return {"forward": forward, "backward": backward, "forward+backward": forward + backward}[mode]
