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
MIN_GROUPS = 10  # of images; an interval from fewer groups would be far too narrow
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
    ("control", "mask_r_cnn"),
]
_PLACEBO_ROWS = [f"placebo_{kind}" for kind in PLACEBOS]
PLACEBO_DIFFERENCES = [
    *((f"{PAPER}_frozen", other) for other in (f"{PLAIN}_frozen", *_PLACEBO_ROWS)),
    *((placebo, f"{PLAIN}_frozen") for placebo in _PLACEBO_ROWS),
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
                if data in PHOTOGRAPHS:
                    steps = steps[:, _order_of_draws(number, steps.shape[1])]
                runs.draws.setdefault(row, {})[number] = steps * STEP
        runs.heads[number] = content
    if not found:
        raise FileNotFoundError(f"{folder} has no rows: run study_mrrcnn.py without --report-only")
    return [found[key] for key in sorted(found, key=lambda key: (key[0], DATA.index(key[1])))]


def _order_of_draws(fold: int, draws: int) -> np.ndarray:
    """An order of its own for each fold. All folds draw with the same seed, so folds with equally
    many groups would vary together, although their images have nothing in common."""
    return np.random.default_rng(fold).permutation(draws)


@dataclass
class Difference:
    """AP of ``a`` minus AP of ``b`` on one subset of the instances.

    Attributes:
        mean: over runs, in points.
        low, high: ends of the bootstrap interval of the mean.
        spread: sample standard deviation over the runs; None for a single one.
        runs: number of runs.
        groups: of validation images that are resampled; the smallest number of any run.
    """

    mean: float
    low: float
    high: float
    spread: float | None
    runs: int
    groups: int

    @property
    def has_interval(self) -> bool:
        return self.groups >= MIN_GROUPS

    def __str__(self) -> str:
        interval = f" [{self.low:+.1f}, {self.high:+.1f}]" if self.has_interval else ""
        return f"{self.mean:+.1f}{interval}"


def difference(
    runs: DataRuns, a: str, b: str, subset: str = "all", iou_type: str = "bbox"
) -> Difference | None:
    """The difference over the runs that have both rows; None if no run has both.

    The draws are averaged over the runs before the interval is taken. The interval therefore shows
    the effect of other images. Runs on photographs validate on different ones.
    """
    return _mean_over_runs(runs, _gains(runs, a, b, subset, iou_type))


def crowding_gain(runs: DataRuns, a: str, b: str, iou_type: str = "bbox") -> Difference | None:
    """By how much more ``a`` gains over ``b`` on huddled objects than on isolated ones."""
    huddled = _gains(runs, a, b, "huddled", iou_type)
    isolated = _gains(runs, a, b, "q <= 0.05", iou_type)
    return _mean_over_runs(
        runs,
        {
            n: (gain - isolated[n][0], drawn - isolated[n][1])
            for n, (gain, drawn) in huddled.items()
        },
    )


def _gains(
    runs: DataRuns, a: str, b: str, subset: str, iou_type: str
) -> dict[int, tuple[float, np.ndarray]]:
    """AP of ``a`` minus AP of ``b``, and of each draw, of every run that has both rows."""
    series = SERIES.index((subset, iou_type))
    return {
        n: (
            runs.rows[a][n]["scores"][subset][iou_type]["AP"]
            - runs.rows[b][n]["scores"][subset][iou_type]["AP"],
            runs.draws[a][n][series] - runs.draws[b][n][series],
        )
        for n in sorted(runs.rows.get(a, {}).keys() & runs.rows.get(b, {}).keys())
    }


def _mean_over_runs(
    runs: DataRuns, gains: dict[int, tuple[float, np.ndarray]]
) -> Difference | None:
    if not gains:
        return None
    values = [value for value, _ in gains.values()]
    mean = statistics.mean(values)
    drawn = np.mean([draws for _, draws in gains.values()], axis=0)
    # A draw averages AP over the classes that it contains, which shifts AP where classes are rare.
    drawn += mean - np.nanmean(drawn)
    tail = (100 - LEVEL) / 2
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    spread = statistics.stdev(values) if len(values) > 1 else None
    # Rounded here, so that the page and summary.json print the same digits.
    mean, low, high = (round(float(v), 3) for v in (mean, low, high))
    groups = min(runs.heads[n]["groups"] for n in gains)
    return Difference(mean, low, high, spread, len(values), groups)


def summarise(all_runs: list[DataRuns]) -> list[Record]:
    """Every available difference, in points of AP. ``interval`` says whether there are enough
    groups of images for its low and high end."""
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
                    "groups": found[0].groups,
                    "interval": found[0].has_interval,
                    **{
                        kind: [d.mean, d.low, d.high]
                        for kind, d in zip(("box", "mask"), found, strict=True)
                        if d is not None
                    },
                }
            )
    return entries
