"""Peak memory of a call, for recipes that compare ways of computing."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path


def peak_megabytes(call: Callable[[], object]) -> float:
    """Megabytes of resident memory at the peak of ``call()`` above what was in use before. NaN
    where the system is not Linux."""
    call()  # loads libraries and starts threads
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # so that memory that is reused counts, too
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc(5)
    except OSError:
        return float("nan")
    before = _resident("VmRSS")
    call()
    return max(_resident("VmHWM") - before, 0) / 1e6


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
