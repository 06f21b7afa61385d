"""What a process holds between two calls, and how much of its growth is a leak."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

MIB = 1 << 20


class MallocInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated() -> int:
    """Bytes that malloc has handed out; 0 before glibc 2.33."""
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        return 0
    function.restype = MallocInfo
    info = function()
    return info.uordblks + info.hblkhd


def resident() -> int:
    """Bytes of memory in use by this process, after malloc has given back what is free."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Memory(NamedTuple):
    """What a process holds between two calls."""

    seconds: float
    resident_mib: float
    allocated_mib: float
    objects: int  # that the garbage collector tracks
    tensors: int
    references: int  # to None, True, False, small integers and dtypes
    threads: int
    files: int

    @staticmethod
    def now(start: float) -> Memory:
        gc.collect()
        objects = gc.get_objects()
        tensors = sum(issubclass(type(each), Tensor) for each in objects)
        shared = (None, True, False, 0, 1, torch.float64, torch.float32, torch.float16)
        return Memory(
            round(time.monotonic() - start, 1),
            round(resident() / MIB, 1),
            round(allocated() / MIB, 2),
            len(objects),
            tensors,
            sum(sys.getrefcount(each) for each in shared),
            len(list(Path("/proc/self/task").iterdir())),
            len(list(Path("/proc/self/fd").iterdir())),
        )


# Growth that is no leak, from the second to the last third of a run: free blocks of malloc, caches
# of torch and Python. Ten bytes lost per call would be 1 MiB in 100,000 calls.
PERMITTED_GROWTH = {
    "resident_mib": 64.0,
    "allocated_mib": 4.0,
    "objects": 200,
    "tensors": 0,
    "references": 1000,
    "threads": 2,
    "files": 2,
}
MIN_ROUNDS = 9  # to judge memory by


def growths(rows: list[Memory]) -> dict[str, float]:
    """Growth by field, from the median of the second third of the rows to the median of the last
    third. Empty if there are too few rows."""
    if len(rows) < MIN_ROUNDS:
        return {}
    third = len(rows) // 3
    return {
        field: round(
            median(getattr(row, field) for row in rows[2 * third :])
            - median(getattr(row, field) for row in rows[third : 2 * third]),
            2,
        )
        for field in PERMITTED_GROWTH
    }
