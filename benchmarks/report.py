"""Results: JSON rows that identify provider, case, machine and time, and a table."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torchvision

import shape_roi_align
from shape_roi_align.__main__ import processor_name
from shape_roi_align._build_info import cpu_capability

RESULTS = Path(__file__).with_name("results")


@dataclass
class Row:
    case: str
    curve: str  # the size that varies, or ""
    provider: str
    mode: str  # forward, backward, forward+backward
    dtype: str
    layout: str
    threads: int
    deterministic: bool  # under torch.use_deterministic_algorithms
    problem: dict[str, Any]  # Case.problem()
    failure: str  # why the time is missing, or ""
    median_seconds: float | None
    fastest_seconds: float | None
    graph_seconds: float | None  # median over CUDA graph replays
    graph_failure: str
    rounds: int
    peak_extra_bytes: int | None
    least_traffic_bytes: int
    fraction_of_limit: float | None  # time of the traffic at copy bandwidth / median
    speedup_over_torchvision: float | None  # median of torchvision's plain RoIAlign / median
    identity: dict[str, object] = field(repr=False)

    def setting(self) -> tuple[object, ...]:
        """Rows of one run are comparable if these are equal."""
        return (self.case, self.mode, self.dtype, self.layout, self.threads, self.deterministic)


def describe_run(device: torch.device, bandwidth: float) -> dict[str, object]:
    """Fields that all rows of a run share. `bandwidth` is in bytes per second."""
    version, dirty = commit()
    return {
        "device_kind": device.type,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": processor_name(),
        "capability": cpu_capability(),
        "threads": torch.get_num_threads(),
        "copy_bytes_per_second": bandwidth,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "shape_roi_align": shape_roi_align.__version__,
        "commit": version,
        "dirty": dirty,
        "platform": platform.platform(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def commit() -> tuple[str, bool]:
    """The measured commit, and whether files differ from it. For sources outside a git repository,
    set BENCHMARK_COMMIT; a trailing "+" means that files differ."""
    name = os.environ.get("BENCHMARK_COMMIT", "")
    if not name:
        command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        try:
            run = subprocess.run(
                command, cwd=RESULTS.parent, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return "", False
        name = run.stdout.strip()
    return name.removesuffix("+"), name.endswith("+")


def write_rows(rows: Iterable[Row], path: Path, *, append: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def read_rows(path: Path) -> list[Row]:
    """Rows with the current fields. Skips rows of older versions, whose fields differ."""
    parsed = map(json.loads, path.read_text().splitlines())
    return [Row(**row) for row in parsed if row.keys() == Row.__dataclass_fields__.keys()]


def align(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def format_table(rows: list[Row]) -> str:
    """One line per case and provider: milliseconds (fraction of the limit) and peak memory.

    The median over CUDA graph replays follows a slash.
    """
    modes = list(dict.fromkeys(row.mode for row in rows))
    titles = [f"{mode} ms (of limit)" for mode in modes]
    lines = [["case", "type", "layout", "threads", "provider", *titles, "peak extra MB"]]
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        dtype = f"{row.dtype}, deterministic" if row.deterministic else row.dtype
        key = (row.case, dtype, row.layout, str(row.threads), row.provider)
        groups.setdefault(key, {})[row.mode] = row
    failures: dict[str, list[str]] = {}
    for names, by_mode in groups.items():
        peaks = [row.peak_extra_bytes for row in by_mode.values()]
        known = [peak for peak in peaks if peak is not None]
        peak = f"{max(known) / 1e6:.1f}" if known else "?"
        times = [format_time(by_mode[mode]) if mode in by_mode else "" for mode in modes]
        lines.append([*names, *times, peak])
        for row in by_mode.values():
            for text in failure_texts(row):
                failures.setdefault(f"{', '.join(names)}: {text}", []).append(row.mode)
    return "\n".join([align(lines), *(f"{text} ({', '.join(m)})" for text, m in failures.items())])


def format_time(row: Row) -> str:
    if row.median_seconds is None:
        return "failed"
    graph = "" if row.graph_seconds is None else f" / {row.graph_seconds * 1e3:.3g}"
    return f"{row.median_seconds * 1e3:.3g}{graph} ({row.fraction_of_limit:.0%})"


def failure_texts(row: Row) -> list[str]:
    texts = {"failed": row.failure, "no CUDA graph": row.graph_failure}
    return [f"{what}: {why}" for what, why in texts.items() if why]
