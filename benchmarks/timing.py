"""How it is measured: times, peak memory, copy bandwidth and the least traffic a case needs.

The providers of a case take turns, one call each per round, so that a machine that slows down or
speeds up does so for all of them. Reported is the median over rounds.
"""

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cases import Case, Inputs, level_of_boxes

MODES = ("forward", "backward", "forward+backward")


class Measurement(NamedTuple):
    seconds: list[float]  # one per round
    peak_extra_bytes: int | None  # above what was in use before the call; None where unknown

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def make_call(pool: Callable[[Inputs], Tensor], inputs: Inputs, mode: str) -> Callable[[], object]:
    """One call of `pool` in `mode`; gradients are those of all leaves the output depends on."""
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


def time_once(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: on CUDA between two events on its stream, else on the wall clock."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    start_time = time.perf_counter()
    call()
    return time.perf_counter() - start_time


def measure(
    calls: dict[str, Callable[[], object]], device: torch.device, *, rounds: int, warmup: int = 1
) -> dict[str, Measurement]:
    peaks = {name: peak_extra_bytes(call, device) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warmup + rounds):
        for name, call in calls.items():
            elapsed = time_once(call, device)
            if i >= warmup:
                seconds[name].append(elapsed)
    return {name: Measurement(seconds[name], peaks[name]) for name in calls}


def peak_extra_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Peak memory of one call, its result included, above that before it. Calls once before."""
    call()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # give freed memory back, so that its reuse shows
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: proc(5)
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
    """Bytes per second, read plus written, of torch copying far more than the caches hold."""
    count = 2**30 if device.type == "cuda" else 2**28
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    result = measure({"copy": lambda: target.copy_(source)}, device, rounds=7)
    return 2 * count / result["copy"].median


def least_traffic(case: Case, inputs: Inputs, mode: str, *, uses_maps: bool) -> int:
    """Bytes that must move in `mode`: feature pixels under the boxes once, maps, boxes and output.

    The backward pass reads the gradient of the output, the maps and the boxes and writes the
    gradients of the pixels under the boxes; that of the maps also needs the features again.
    """
    features = pixels_under_boxes(case, inputs) * case.channels * inputs.features[0].itemsize
    maps = inputs.prob_maps.numel() * inputs.prob_maps.itemsize if uses_maps else 0
    boxes = inputs.rois.numel() * inputs.rois.itemsize
    output = case.num_rois * case.channels * case.output_size**2 * inputs.features[0].itemsize
    forward = features + maps + boxes + output
    backward = output + boxes + features + 2 * maps + (features if uses_maps else 0)
    return {"forward": forward, "backward": backward, "forward+backward": forward + backward}[mode]


def pixels_under_boxes(case: Case, inputs: Inputs) -> int:
    """Feature pixels, over all images and levels, between the outermost corners of some box."""
    count = 0
    for boxes in inputs.boxes:
        level_of_box = level_of_boxes(case, boxes)
        for i, (height, width, stride) in enumerate(case.levels):
            covered = torch.zeros(height, width, dtype=torch.bool)
            for x1, y1, x2, y2 in (boxes[level_of_box == i] / stride).tolist():
                covered[int(y1) : int(y2) + 2, int(x1) : int(x2) + 2] = True
            count += int(covered.sum())
    return count
