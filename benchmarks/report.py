"""Where results go: JSON rows that say who, what, where and when, and a table for people."""

import json
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import torch
import torchvision

import shape_roi_align

RESULTS = Path(__file__).with_name("results")


@dataclass
class Row:
    case: str
    provider: str
    mode: str  # forward, backward, forward+backward
    dtype: str
    layout: str
    median_seconds: float
    fastest_seconds: float
    rounds: int
    peak_extra_bytes: int | None
    least_traffic_bytes: int
    fraction_of_limit: float  # the time that the traffic takes at copy bandwidth, over the median
    identity: dict[str, object] = field(repr=False)


def describe_run(device: torch.device, bandwidth: float) -> dict[str, object]:
    """What every row of a run has in common. `bandwidth` is in bytes per second."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "copy_bytes_per_second": bandwidth,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "shape_roi_align": shape_roi_align.__version__,
        "commit": commit(),
        "platform": platform.platform(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str:
    """The commit measured, with "+" after it if files differ from it; "" outside a repository."""
    try:
        command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+"]
        folder = Path(__file__).parent
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def write_rows(rows: Iterable[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))


def format_table(rows: list[Row]) -> str:
    """One line per case, dtype, layout and provider: milliseconds, share of the limit, memory."""
    modes = list(dict.fromkeys(row.mode for row in rows))
    titles = [f"{mode} ms (of limit)" for mode in modes]
    lines = [["case", "dtype", "layout", "provider", *titles, "peak extra MB"]]
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row.case, row.dtype, row.layout, row.provider), {})[row.mode] = row
    for key, by_mode in groups.items():
        cells = [
            f"{row.median_seconds * 1e3:.2f} ({row.fraction_of_limit:.0%})"
            for row in by_mode.values()
        ]
        peaks = [row.peak_extra_bytes for row in by_mode.values()]
        peak = "?" if None in peaks else f"{max(p for p in peaks if p is not None) / 1e6:.1f}"
        lines.append([*key, *cells, peak])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
