"""The recorded times and counters of the kernels, beside the predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cases import Case
from cuda_model.calls import gradient_of_maps
from cuda_model.counts import Work, forward
from cuda_model.kernels import WANTED_BLOCKS, wanted_in_forward
from cuda_model.text import ALL, FLOAT32, LAYOUTS, number, table
from cuda_model.tiles import gather_feature_gradient

RESULTS = Path(__file__).resolve().parents[1] / "results"
JOBS = ("forward", "gather", "map_and_box")  # how the kernels' names begin


def read(name: str) -> list[dict[str, Any]]:
    with (RESULTS / f"recorded-{name}-cuda.jsonl").open() as file:
        return [json.loads(line) for line in file]


def works_of(case: Case, channels_last: bool) -> dict[str, Work]:
    return {
        "forward": forward(case, channels_last, FLOAT32),
        "gather": gather_feature_gradient(case, channels_last, FLOAT32),
        "map_and_box": gradient_of_maps(case, channels_last, FLOAT32)[-1],
    }


def kernel_times() -> dict[tuple[str, str, str], float]:
    """Microseconds by case, layout and job, with as many blocks as the kernels want now."""
    rows = read("kernels")
    newest = rows[-1]["identity"]["commit"]
    times = {}
    for row in rows:
        job = next((job for job in JOBS if row["kernel"].startswith(job)), None)
        bins = ALL[row["case"]].output_size ** 2
        wanted = wanted_in_forward(bins) if job == "forward" else WANTED_BLOCKS
        is_current = row["identity"]["commit"] == newest and row["wanted_blocks"] == wanted
        if job is not None and is_current and row["provider"] == "shape_roi_align":
            times[row["case"], row["layout"], job] = row["microseconds"]
    return times


def time_rows(names: list[str]) -> list[str]:
    times = kernel_times()

    def cells(name: str, layout: str) -> Iterator[str]:
        for job, work in works_of(ALL[name], LAYOUTS[layout]).items():
            measured = times[name, layout, job]
            predicted = 1e6 * max(work.limits().values())
            yield f"{number(predicted)} / {number(measured)} ({measured / predicted:.1f})"

    measured = [name for name in names if (name, "contiguous", "forward") in times]
    return table(
        ["predicted / measured", "layout", "forward", "gradient of features", "gradient of maps"],
        [[name, layout, *cells(name, layout)] for name in measured for layout in LAYOUTS],
    )


def counter_rows() -> list[str]:
    rows = []
    for row in read("counters"):
        job = next((job for job in JOBS if row["kernel"].startswith(job)), None)
        if job is None:
            continue
        work = works_of(ALL[row["case"]], LAYOUTS[row["layout"]])[job]
        waits = row["warp_cycles_per_instruction"]
        longest = sorted(waits, key=waits.__getitem__, reverse=True)[:2]
        cycles = sum(waits.values())
        rows.append(
            [
                f"{row['case']}, {row['layout']}",
                f"`{row['kernel']}`",
                f"{work.instructions / 1e6:.1f} / {row['instructions'] / 1e6:.1f}",
                f"{work.device / 1e6:.0f} / "
                f"{(row['dram_bytes_read'] + row['dram_bytes_written']) / 1e6:.0f}",
                f"{row['issue_active_percent']:.0f} %",
                ", ".join(
                    f"{name.replace('_', ' ')} {waits[name] / cycles:.0%}" for name in longest
                ),
            ]
        )
    head = ["case", "kernel", "million instructions", "MB of device memory", "issue slots used"]
    return table([*head, "warps wait for"], rows)
