"""Tables in Markdown from the rows of study_mrrcnn.py, and a verdict on each claim of the paper."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from training.evaluate import IOU_TYPES, METRICS

from .neighbours import KINDS
from .rows import ALPHAS, BASE, MAIN, OPTIONS, PLACEBO, ROWS
from .summary import (
    PAPER,
    PLAIN,
    RECOMMENDED,
    DataRuns,
    Difference,
    Record,
    crowding_gain,
    difference,
)

ABSENT = "-"
NO_INSTANCE = -1.0  # AP of an empty bin
KIND_NAMES = {"bbox": "box", "segm": "mask"}


def name_of(runs: DataRuns) -> str:
    return f"`{runs.data}`" if runs.preset == "cpu" else f"`{runs.data}`, preset {runs.preset}"


def data_table(all_runs: list[DataRuns]) -> str:
    lines = []
    for runs in all_runs:
        head = runs.heads[min(runs.heads)]
        train, held_out, val = head["images"]
        instances = sum(v for k, v in head["instances"].items() if "q" in k)  # bins of q
        crowded = head["instances"]["huddled"] / max(instances, 1)
        lines.append(
            [
                name_of(runs),
                f"{train} / {held_out} / {val}",
                f"{head['groups']}",
                f"{instances}, {100 * crowded:.0f} %",
                f"{head['settings']['image_size']}",
                f"{head['settings']['base']['iterations']}",
                f"{head['settings']['refine']['iterations']}",
                " / ".join(_held_out(runs, BASE, iou_type) for iou_type in IOU_TYPES),
                " / ".join(_held_out(runs, "control", iou_type) for iou_type in IOU_TYPES),
                " / ".join(_held_out_gain(runs, iou_type) for iou_type in IOU_TYPES),
                ", ".join(map(str, sorted(runs.heads))),
            ]
        )
    header = [
        "",
        "images: trained on / held out / validated on",
        "groups of validated images",
        "validated instances, huddled",
        "pixels",
        "iterations of the base",
        "of refining",
        "box / mask AP held out: Mask R-CNN",
        "Mask R-CNN, equal iterations",
        "gain",
        "which seeds or folds",
    ]
    devices = sorted(_identities(all_runs, "device"))
    versions = ", ".join(
        f"{name} {', '.join(sorted(_identities(all_runs, name)))}"
        for name in ("torch", "torchvision", "shape_roi_align")
    )
    notes = "Images, groups and instances: of the first seed or fold."
    return markdown(header, lines) + f"\n{notes} Run on {', '.join(devices)}; {versions}.\n"


def _identities(all_runs: list[DataRuns], key: str) -> set[str]:
    return {
        str(record["identity"][key])
        for runs in all_runs
        for records in runs.rows.values()
        for record in records.values()
    }


def _held_out(runs: DataRuns, row: str, iou_type: str) -> str:
    records = runs.rows.get(row, {}).values()
    return mean_deviation(r["held_out"][iou_type] for r in records if "held_out" in r)


def _held_out_gain(runs: DataRuns, iou_type: str) -> str:
    base, control = runs.rows.get(BASE, {}), runs.rows.get("control", {})
    return mean_deviation(
        (
            control[n]["held_out"][iou_type] - base[n]["held_out"][iou_type]
            for n in sorted(base.keys() & control.keys())
        ),
        sign=True,
    )


def _rows_of_equal_runs(
    runs: DataRuns, names: Iterable[str], key: str
) -> list[tuple[str, list[Record]]]:
    """(title, records) of the rows whose records have ``key``. A row that only some runs have can
    be compared with rows of the same runs only. Such rows come last, below a row with the paper's
    settings of their runs."""
    made = {
        name: {n: r for n, r in sorted(runs.rows.get(name, {}).items()) if key in r}
        for name in names
    }
    by_runs: dict[tuple[int, ...], list[str]] = {}
    for name, records in made.items():
        if records:
            by_runs.setdefault(tuple(records), []).append(name)
    lines = []
    for numbers in sorted(by_runs, key=len, reverse=True):
        group = by_runs[numbers]
        if len(numbers) < len(runs.heads) and made.get(PAPER, {}).keys() > set(numbers):
            title = f"{ROWS[PAPER].title}: of the rows below"
            lines.append((title, [made[PAPER][n] for n in numbers]))
        lines += [(ROWS[name].title, [made[name][n] for n in numbers]) for name in group]
    return lines


def detection_table(runs: DataRuns) -> str:
    header = [
        "",
        *(f"{k} {m}" for k in KIND_NAMES.values() for m in METRICS),
        "iterations of the row",
        "seeds or folds",
    ]
    lines = []
    for title, records in _rows_of_equal_runs(runs, [*MAIN, *PLACEBO], "scores"):
        cells = [
            mean_deviation(r["scores"]["all"][iou_type][metric] for r in records)
            for iou_type in IOU_TYPES
            for metric in METRICS
        ]
        counts = [r["iterations"] for r in records if "iterations" in r]
        lines.append([title, *cells, mean_deviation(counts, digits=0), str(len(records))])
    return markdown(header, lines)


def difference_table(all_runs: list[DataRuns], pairs: list[tuple[str, str]]) -> str:
    lines = []
    for a, b in pairs:
        for runs in all_runs:
            found = [difference(runs, a, b, "all", iou_type) for iou_type in IOU_TYPES]
            if found[0] is not None:
                title = f"{ROWS[a].title} *over* {ROWS[b].title}"
                lines.append([title, name_of(runs), *map(_with_spread, found), str(found[0].runs)])
    return markdown(["", "data", "box AP", "mask AP", "seeds or folds"], lines) if lines else ""


def _with_spread(found: Difference | None) -> str:
    if found is None:
        return ABSENT
    return f"{found}" if found.spread is None else f"{found} ± {found.spread:.1f}"


def crowding_table(all_runs: list[DataRuns]) -> str:
    lines = []
    for runs in all_runs:
        for a, b in ((RECOMMENDED, "control"), (RECOMMENDED, PLAIN), (PAPER, PLAIN)):
            cells = [
                difference(runs, a, b, subset, iou_type)
                for iou_type in IOU_TYPES
                for subset in ("q <= 0.05", "huddled")
            ]
            if cells[0] is not None:
                title = f"{ROWS[a].title} *over* {ROWS[b].title}"
                lines.append([title, name_of(runs), *map(str, cells)])
    header = ["", "data", "box AP, isolated", "huddled", "mask AP, isolated", "huddled"]
    return markdown(header, lines) if lines else ""


def recall_table(runs: DataRuns) -> str:
    lines = [
        [
            title,
            *(mean_deviation(r["recall"][kind][0] for r in records) for kind in KINDS),
            str(len(records)),
        ]
        for title, records in _rows_of_equal_runs(runs, [*MAIN, *OPTIONS, "cls"], "recall")
    ]
    counts = [
        sum(r["recall"][kind][1] for r in runs.rows[BASE].values() if "recall" in r)
        for kind in KINDS
    ]
    header = [
        "",
        *(f"{what} ({n})" for what, n in zip(("no neighbour", *KINDS[1:]), counts, strict=True)),
        "seeds or folds",
    ]
    return markdown(header, lines)


def table_4_and_5(runs: DataRuns) -> str:
    """Of the runs that have every column: averages over other runs could not be compared."""
    names = {
        "base": BASE,
        "CLS only": "cls",
        "REG only (alpha = 0)": "alpha=0",
        **{f"alpha = {a:g}": f"alpha={a:g}" if a != 1 else PAPER for a in ALPHAS if a},
    }
    common = set.intersection(*(set(runs.rows.get(name, {})) for name in names.values()))
    lines = [
        [
            KIND_NAMES[iou_type],
            *(
                mean_deviation(
                    runs.rows[name][n]["scores"]["all"][iou_type]["AP"] for n in sorted(common)
                )
                for name in names.values()
            ),
            str(len(common)),
        ]
        for iou_type in IOU_TYPES
    ]
    return markdown(["AP", *names, "seeds or folds"], lines) if common else ""


def probe_table(runs: DataRuns) -> str:
    header = [
        "",
        *("own, alone", "beside", "neighbour's, alone", "beside", "right, alone", "beside"),
        "seeds or folds",
    ]
    lines = []
    for title, records in _rows_of_equal_runs(runs, MAIN, "probe"):
        cells = [
            mean_deviation(record["probe"][where][what] for record in records)
            for what in ("own", "neighbour", "right")
            for where in ("alone", "beside")
        ]
        lines.append([title, *cells, str(len(records))])
    return markdown(header, lines) if lines else ""


def claims(all_runs: list[DataRuns]) -> str:
    """Each claim of the paper and its verdict here."""
    of_paper: list[tuple[str, Callable[..., Difference | None], str, str]] = [
        ("Table 1: MR R-CNN over Mask R-CNN", difference, PAPER, "control"),
        ("the same, recommended settings", difference, RECOMMENDED, "control"),
        ("the same, recommended settings, equal time", difference, RECOMMENDED, "control_time"),
        ("Table 3: refining module over Mask R-CNN", difference, PLAIN, "control"),
        ("Table 3: SaRoIAlign over RoIAlign", difference, PAPER, PLAIN),
        ("the same, recommended settings", difference, RECOMMENDED, f"{PLAIN}_recommended"),
        ("Table 4: classes and boxes refined, over classes only", difference, PAPER, "cls"),
        ("the same over boxes only", difference, PAPER, "alpha=0"),
        ("Table 5: alpha = 1 over alpha = 0.1", difference, PAPER, "alpha=0.1"),
        ("the same over alpha = 10", difference, PAPER, "alpha=10"),
        (
            "Figure 1: huddled objects gain more than isolated ones, MR R-CNN over Mask R-CNN",
            crowding_gain,
            PAPER,
            "control",
        ),
        ("the same, recommended settings", crowding_gain, RECOMMENDED, "control"),
    ]
    lines = []
    for claim, gain, a, b in of_paper:
        for runs in all_runs:
            found = [gain(runs, a, b, iou_type=iou_type) for iou_type in IOU_TYPES]
            cells = [f"{verdict(d)}: {d}" if d else ABSENT for d in found]
            if found[0] is not None:
                lines.append([claim, name_of(runs), *cells, str(found[0].runs)])
    table = markdown(["claim", "data", "box AP", "mask AP", "seeds or folds"], lines)
    return "\n".join([table, *filter(None, map(_figure_2_claim, all_runs))])


def _figure_2_claim(runs: DataRuns) -> str:
    """By how much a neighbour lowers the score of an object's class."""
    texts = []
    for name in ("control", "control_time", RECOMMENDED):
        probes = [r["probe"] for r in runs.rows.get(name, {}).values() if "probe" in r]
        if probes:
            fall = mean_deviation(p["alone"]["own"] - p["beside"]["own"] for p in probes)
            right = mean_deviation(p["beside"]["right"] for p in probes)
            texts.append(f"by {fall} points in *{ROWS[name].title}* ({right} % remain right)")
    if not texts:
        return ""
    return (
        f"Figure 2 on {name_of(runs)}, without an interval: a neighbour lowers the probability of "
        f"an object's class {', '.join(texts)}.\n"
    )


def verdict(found: Difference) -> str:
    """Of the ends as they are printed."""
    if not found.has_interval:
        return "no verdict"
    if round(found.low, 1) > 0:
        return "seen"
    return "the contrary" if round(found.high, 1) < 0 else "undecided"


def mean_deviation(values: Iterable[float], *, digits: int = 1, sign: bool = False) -> str:
    """Such as ``12.3 ± 0.4``, mean and sample standard deviation; the mean alone for one value.

    Args:
        sign: print the sign of the mean: the values are differences, not AP.
    """
    values = list(values)
    if not values or (not sign and min(values) == NO_INSTANCE):
        return ABSENT
    text = f"{statistics.mean(values):{'+' if sign else ''}.{digits}f}"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{text} ± {deviation:.{digits}f}" if deviation else text


def markdown(header: list[str], lines: list[list[Any]]) -> str:
    rule = ["---"] * len(header)
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [header, rule, *lines])
