"""Differences between rows, with intervals, from the files of the runs."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.evaluate import IOU_TYPES

from .bootstrap import SERIES, STEP
from .placebo import PLACEBOS
from .rows import OPTIONS
from .settings import DATA, PHOTOGRAPHS

Record = dict[str, Any]
LEVEL = 95  # percent
RECOMMENDED, PAPER, PLAIN = "rm_saroialign_recommended", "rm_saroialign", "rm_roialign"
# A row and what it is compared with.
DIFFERENCES = [
    (RECOMMENDED, "control"),
    (RECOMMENDED, "control_time"),
    (RECOMMENDED, PLAIN),
    (RECOMMENDED, f"{PLAIN}_recommended"),
    (PAPER, "control"),
    (PAPER, "control_time"),
    (PAPER, PLAIN),
    (PLAIN, "control"),
    (PLAIN, "control_time"),
    ("control", "mask_r_cnn"),
]
PLACEBO_DIFFERENCES = [
    (f"{PAPER}_frozen", other)
    for other in (f"{PLAIN}_frozen", *(f"placebo_{kind}" for kind in PLACEBOS))
]
OPTION_DIFFERENCES = [(name, PAPER) for name in OPTIONS]
ALL_DIFFERENCES = DIFFERENCES + PLACEBO_DIFFERENCES + OPTION_DIFFERENCES


@dataclass
class DataRuns:
    """All runs of one preset on one data set.

    Attributes:
        heads: of each run, the content of its file except the rows.
        rows: records by row and run.
        draws: AP in percent [SERIES, draws] by row and run.
    """

    preset: str
    data: str
    heads: dict[int, Record] = field(default_factory=dict)
    rows: dict[str, dict[int, Record]] = field(default_factory=dict)
    draws: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)


def load_runs(folder: Path) -> list[DataRuns]:
    """The runs in all files of ``study.run``, in the order of ``DATA``.

    Raises:
        FileNotFoundError: there are none.
    """
    found: dict[tuple[str, str], DataRuns] = {}
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text())
        preset, data, _ = content["name"].rsplit("-", 2)
        runs = found.setdefault((preset, data), DataRuns(preset, data))
        number = content["run"]
        with np.load(file.with_suffix(".npz")) as draws:
            for row, record in content.pop("rows").items():
                runs.rows.setdefault(row, {})[number] = record
                steps = draws[row].astype(float)
                steps[steps < 0] = np.nan
                runs.draws.setdefault(row, {})[number] = steps * STEP
        runs.heads[number] = content
    if not found:
        raise FileNotFoundError(f"{folder} has no rows: run study_mrrcnn.py without --report-only")
    return [found[key] for key in sorted(found, key=lambda key: (key[0], DATA.index(key[1])))]


@dataclass
class Difference:
    """AP of ``a`` minus AP of ``b`` on one subset of the instances.

    Attributes:
        mean: over runs, in points.
        low, high: ends of the bootstrap interval of the mean.
        spread: sample standard deviation over the runs; None for a single one.
        runs: number of runs.
    """

    mean: float
    low: float
    high: float
    spread: float | None
    runs: int

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def difference(
    runs: DataRuns, a: str, b: str, subset: str = "all", iou_type: str = "bbox"
) -> Difference | None:
    """The difference over the runs that have both rows; None if no run has both.

    The draws are averaged over the runs before the interval is taken. The interval therefore shows
    the effect of other images. Runs on photographs validate on different ones.
    """
    return _mean_over_runs(_gains(runs, a, b, subset, iou_type))


def crowding_gain(runs: DataRuns, a: str, b: str, iou_type: str = "bbox") -> Difference | None:
    """By how much more ``a`` gains over ``b`` on huddled objects than on isolated ones."""
    huddled = _gains(runs, a, b, "huddled", iou_type)
    isolated = _gains(runs, a, b, "q <= 0.05", iou_type)
    return _mean_over_runs(
        [
            (gain - other, drawn - other_drawn)
            for (gain, drawn), (other, other_drawn) in zip(huddled, isolated, strict=True)
        ]
    )


def _gains(
    runs: DataRuns, a: str, b: str, subset: str, iou_type: str
) -> list[tuple[float, np.ndarray]]:
    """AP of ``a`` minus AP of ``b``, and of each draw, of every run that has both rows."""
    series = SERIES.index((subset, iou_type))
    return [
        (
            runs.rows[a][n]["scores"][subset][iou_type]["AP"]
            - runs.rows[b][n]["scores"][subset][iou_type]["AP"],
            runs.draws[a][n][series] - runs.draws[b][n][series],
        )
        for n in sorted(runs.rows.get(a, {}).keys() & runs.rows.get(b, {}).keys())
    ]


def _mean_over_runs(gains: list[tuple[float, np.ndarray]]) -> Difference | None:
    if not gains:
        return None
    values = [value for value, _ in gains]
    drawn = np.mean([draws for _, draws in gains], axis=0)
    tail = (100 - LEVEL) / 2
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    spread = statistics.stdev(values) if len(values) > 1 else None
    # Rounded here, so that the page and summary.json print the same digits.
    mean, low, high = (round(float(v), 3) for v in (statistics.mean(values), low, high))
    return Difference(mean, low, high, spread, len(values))


def summarise(all_runs: list[DataRuns]) -> list[Record]:
    """Every available difference, in points of AP."""
    entries = []
    for runs in all_runs:
        for a, b in ALL_DIFFERENCES:
            found = [difference(runs, a, b, "all", iou_type) for iou_type in IOU_TYPES]
            if found[0] is None:
                continue
            entries.append(
                {
                    "data": runs.data,
                    "preset": runs.preset,
                    "real": runs.data in PHOTOGRAPHS,
                    "a": a,
                    "b": b,
                    "time": "equal_time" if b == "control_time" else "equal_iterations",
                    "seeds": found[0].runs,
                    **{
                        kind: [d.mean, d.low, d.high]
                        for kind, d in zip(("box", "mask"), found, strict=True)
                        if d is not None
                    },
                }
            )
    return entries
