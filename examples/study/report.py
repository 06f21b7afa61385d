"""Tables in Markdown from the rows of study_mrrcnn.py, in the paper's order."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from training.evaluate import IOU_TYPES, METRICS

from .neighbours import KINDS
from .rows import ALPHAS, BASE, MAIN, OPTIONS, PLACEBO, ROWS
from .summary import (
    DIFFERENCES,
    OPTION_DIFFERENCES,
    PAPER,
    PLACEBO_DIFFERENCES,
    PLAIN,
    RECOMMENDED,
    DataRuns,
    Difference,
    crowding_gain,
    difference,
    load_runs,
    summarise,
)

ABSENT = "-"
NO_INSTANCE = -1.0  # AP of an empty bin
KIND_NAMES = {"bbox": "box", "segm": "mask"}
ATTRIBUTION = (
    "The photographs of `mushrooms` are by the Pennsylvania State University workspace on Roboflow "
    'Universe ("mushroom detection smart bounding boxes", CC BY 4.0); figures show tiles with '
    "drawings on top. `bin` is from Runnlion/NCSU-ARLab-ICRA2025-RMGC, which states no licence, so "
    "this page has only numbers of it.\n"
)
TERMS = (
    "`shape` and `color` are generated images of crowded shapes; the classes of `shape` are "
    "shapes, of `color` colours. `bin` is photographs of heaped household objects, 20 classes. "
    "`mushrooms` is photographs of touching mushrooms, one class. RM is the refining module. "
    "*Recommended* rows are trained with `RefineConfig.recommended()`. *Recommended first NMS* "
    "rows use the weights of the paper's settings, evaluated with the recommended NMS before "
    "refining. An object is *huddled* if the pixels of other objects in its box exceed 5 % of its "
    "own pixels, and *isolated* otherwise. A claim is *seen* if its interval lies above 0, "
    "*undecided* if the interval contains 0, and *the contrary* is seen if it lies below 0.\n"
)
TERM_OF_LONG = (
    "Preset long trains the base, and refines, for twice the iterations: the base of `bin` had not "
    "converged.\n"
)


def write_report(folder: Path) -> Path:
    """``folder/README.md`` and ``folder/summary.json`` from ``folder/runs``.

    Raises:
        FileNotFoundError: there are no rows.
    """
    all_runs = load_runs(folder / "runs")
    entries = ",\n".join(f" {json.dumps(entry)}" for entry in summarise(all_runs))
    (folder / "summary.json").write_text(f"[\n{entries}\n]\n")
    parts = [
        "# Mask R-CNN and MR R-CNN, with controls and placebos\n",
        "Written by `python examples/study_mrrcnn.py --report-only` from `runs/`. AP in percent, "
        "averaged over seeds or folds; ± is the standard deviation over seeds or folds. Brackets "
        "contain the 95 % interval of a paired bootstrap over validation images; for `bin` and "
        "`mushrooms`, over groups of photographs that show the same objects. The interval shows "
        "how much the difference varies with the images, not with the seeds. `summary.json` has "
        "all differences.\n",
        TERMS,
        TERM_OF_LONG if any(runs.preset == "long" for runs in all_runs) else "",
        ATTRIBUTION,
        "## Data, and how far the base has converged\n",
        _data_table(all_runs),
        "## The paper's claims\n",
        _claims(all_runs),
        "## Tables 1 and 3: detection\n",
        *_each(all_runs, _detection_table),
        "## Differences\n",
        _difference_table(all_runs, DIFFERENCES),
        _section(
            "Placebos: is it the shape?",
            _difference_table(all_runs, PLACEBO_DIFFERENCES),
            intro="The base is frozen, so all rows refine the same boxes.",
        ),
        "## By crowding\n",
        _crowding_table(all_runs),
        "## Figure 1: recall by neighbour\n",
        "Percentage of the objects that a detection of the same class matches at IoU 0.5. A "
        "neighbour is an object whose box has an IoU above 0.3 with the object's box. In "
        "parentheses: number of objects, summed over seeds or folds.\n",
        *_each(all_runs, _recall_table),
        _section("Options", _difference_table(all_runs, OPTION_DIFFERENCES)),
        _section(
            "Tables 4 and 5: one checkpoint of RM + SaRoIAlign, evaluated in several ways",
            *_each(all_runs, _table_4_and_5),
        ),
        "## Figure 2: the same object alone and beside a neighbour\n",
        "Scores of the object's box, in percent, for the object alone and beside a neighbour. "
        "*Own*: mean probability of the object's class. *Neighbour's*: mean probability of the "
        "neighbour's class. *Right*: how often the object's class is the most probable.\n",
        *_each(all_runs, _probe_table),
        _pictures(folder),
    ]
    path = folder / "README.md"
    path.write_text("\n".join(part for part in parts if part))
    return path


def _section(title: str, *tables: str, intro: str = "") -> str:
    """Empty if all tables are empty."""
    shown = [table for table in tables if table]
    lines = [f"## {title}\n", *([f"{intro}\n"] if intro else []), *shown]
    return "\n".join(lines) if shown else ""


def _each(all_runs: list[DataRuns], table: Callable[[DataRuns], str]) -> list[str]:
    """The tables of all data sets, except empty ones."""
    made = [(runs, table(runs)) for runs in all_runs]
    return [f"**{_name(runs)}**\n\n{text}" for runs, text in made if text]


def _name(runs: DataRuns) -> str:
    return f"`{runs.data}`" if runs.preset == "cpu" else f"`{runs.data}`, preset {runs.preset}"


def _data_table(all_runs: list[DataRuns]) -> str:
    lines = []
    for runs in all_runs:
        head = runs.heads[min(runs.heads)]
        train, held_out, val = head["images"]
        instances = sum(v for k, v in head["instances"].items() if "q" in k)  # bins of q
        crowded = head["instances"]["huddled"] / max(instances, 1)
        lines.append(
            [
                _name(runs),
                f"{train} / {held_out} / {val}",
                f"{instances}, {100 * crowded:.0f} %",
                f"{head['settings']['image_size']}",
                f"{head['settings']['base']['iterations']}",
                f"{head['settings']['refine']['iterations']}",
                _held_out(runs, "mask_r_cnn"),
                _held_out(runs, "control"),
                _held_out_gain(runs),
                f"{len(runs.heads)}",
            ]
        )
    header = [
        "",
        "images: trained on / held out / validated on",
        "validated instances, huddled",
        "pixels",
        "iterations of the base",
        "of refining",
        "box AP held out: base",
        "base plus as many iterations as refining",
        "gain",
        "seeds or folds",
    ]
    devices = sorted(_identities(all_runs, "device"))
    versions = ", ".join(
        f"{name} {', '.join(sorted(_identities(all_runs, name)))}"
        for name in ("torch", "torchvision", "shape_roi_align")
    )
    notes = "Images and instances: of the first seed or fold."
    return _markdown(header, lines) + f"\n{notes} Run on {', '.join(devices)}; {versions}.\n"


def _identities(all_runs: list[DataRuns], key: str) -> set[str]:
    return {
        str(record["identity"][key])
        for runs in all_runs
        for records in runs.rows.values()
        for record in records.values()
    }


def _held_out(runs: DataRuns, row: str) -> str:
    records = runs.rows.get(row, {}).values()
    return mean_deviation(r["held_out"]["bbox"] for r in records if "held_out" in r)


def _held_out_gain(runs: DataRuns) -> str:
    base, control = runs.rows.get("mask_r_cnn", {}), runs.rows.get("control", {})
    return mean_deviation(
        (
            control[n]["held_out"]["bbox"] - base[n]["held_out"]["bbox"]
            for n in sorted(base.keys() & control.keys())
        ),
        sign=True,
    )


def _detection_table(runs: DataRuns) -> str:
    header = [
        "",
        *(f"{k} {m}" for k in KIND_NAMES.values() for m in METRICS),
        "iterations",
        "seeds or folds",
    ]
    lines = []
    for name in [*MAIN, *PLACEBO]:
        records = list(runs.rows.get(name, {}).values())
        if records:
            cells = [
                mean_deviation(r["scores"]["all"][iou_type][metric] for r in records)
                for iou_type in IOU_TYPES
                for metric in METRICS
            ]
            counts = [r["iterations"] for r in records if "iterations" in r]
            lines.append(
                [ROWS[name].title, *cells, mean_deviation(counts, digits=0), str(len(records))]
            )
    return _markdown(header, lines)


def _difference_table(all_runs: list[DataRuns], pairs: list[tuple[str, str]]) -> str:
    lines = []
    for a, b in pairs:
        for runs in all_runs:
            found = [difference(runs, a, b, "all", iou_type) for iou_type in IOU_TYPES]
            if found[0] is not None:
                title = f"{_short(a)} *over* {_short(b)}"
                lines.append([title, _name(runs), *map(_with_spread, found), str(found[0].runs)])
    return _markdown(["", "data", "box AP", "mask AP", "seeds or folds"], lines) if lines else ""


def _short(name: str) -> str:
    return ROWS[name].title


def _with_spread(found: Difference | None) -> str:
    if found is None:
        return ABSENT
    return f"{found}" if found.spread is None else f"{found} ± {found.spread:.1f}"


def _crowding_table(all_runs: list[DataRuns]) -> str:
    lines = []
    for runs in all_runs:
        for a, b in ((RECOMMENDED, "control"), (RECOMMENDED, PLAIN), (PAPER, PLAIN)):
            cells = [
                difference(runs, a, b, subset, iou_type)
                for iou_type in IOU_TYPES
                for subset in ("q <= 0.05", "huddled")
            ]
            if cells[0] is not None:
                title = f"{_short(a)} *over* {_short(b)}"
                lines.append([title, _name(runs), *map(str, cells)])
    header = ["", "data", "box AP, isolated", "huddled", "mask AP, isolated", "huddled"]
    return _markdown(header, lines) if lines else ""


def _recall_table(runs: DataRuns) -> str:
    lines = []
    for name in [*MAIN, *OPTIONS]:
        records = [r for r in runs.rows.get(name, {}).values() if "recall" in r]
        if records:
            lines.append(
                [
                    ROWS[name].title,
                    *(mean_deviation(r["recall"][kind][0] for r in records) for kind in KINDS),
                    str(len(records)),
                ]
            )
    counts = [
        sum(r["recall"][kind][1] for r in runs.rows["mask_r_cnn"].values() if "recall" in r)
        for kind in KINDS
    ]
    header = [
        "",
        *(f"{what} ({n})" for what, n in zip(("no neighbour", *KINDS[1:]), counts, strict=True)),
        "seeds or folds",
    ]
    return _markdown(header, lines)


def _table_4_and_5(runs: DataRuns) -> str:
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
    return _markdown(["AP", *names, "seeds or folds"], lines) if common else ""


def _probe_table(runs: DataRuns) -> str:
    header = [
        "",
        *("own, alone", "beside", "neighbour's, alone", "beside", "right, alone", "beside"),
        "seeds or folds",
    ]
    lines = []
    for name in MAIN:
        probed = [r["probe"] for r in runs.rows.get(name, {}).values() if "probe" in r]
        if probed:
            cells = [
                mean_deviation(probe[where][what] for probe in probed)
                for what in ("own", "neighbour", "right")
                for where in ("alone", "beside")
            ]
            lines.append([ROWS[name].title, *cells, str(len(probed))])
    return _markdown(header, lines) if lines else ""


def _claims(all_runs: list[DataRuns]) -> str:
    """Each claim of the paper and its verdict here."""
    claims: list[tuple[str, Callable[..., Difference | None], str, str]] = [
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
    for claim, gain, a, b in claims:
        for runs in all_runs:
            found = [gain(runs, a, b, iou_type=iou_type) for iou_type in IOU_TYPES]
            cells = [f"{verdict(d)}: {d}" if d else ABSENT for d in found]
            if found[0] is not None:
                lines.append([claim, _name(runs), *cells])
    table = _markdown(["claim", "data", "box AP", "mask AP"], lines)
    return "\n".join([table, *filter(None, map(_figure_2_claim, all_runs))])


def _figure_2_claim(runs: DataRuns) -> str:
    """By how much a neighbour lowers the score of an object's class."""
    falls = [
        (
            name,
            [
                r["probe"]["alone"]["own"] - r["probe"]["beside"]["own"]
                for r in runs.rows.get(name, {}).values()
                if "probe" in r
            ],
        )
        for name in ("control", RECOMMENDED)
    ]
    if not all(values for _, values in falls):
        return ""
    texts = [f"{mean_deviation(values)} points in *{ROWS[name].title}*" for name, values in falls]
    return (
        f"Figure 2 on {_name(runs)}, without an interval: a neighbour lowers the probability of an "
        f"object's class by {' and by '.join(texts)}.\n"
    )


def verdict(found: Difference) -> str:
    if found.low > 0:
        return "seen"
    return "the contrary" if found.high < 0 else "undecided"


def _pictures(folder: Path) -> str:
    titles = {
        2: "Figure 2: class scores of the control and of MR R-CNN for an object's box",
        5: "Figure 5: detections of both models where objects are crowded",
    }
    return "\n".join(
        f"![{title}]({path.name})\n"
        for number, title in titles.items()
        for path in sorted(folder.glob(f"*-figure{number}.png"))
    )


def mean_deviation(values: Iterable[float], *, digits: int = 1, sign: bool = False) -> str:
    """Such as ``12.3 ± 0.4``, mean and sample standard deviation; the mean alone for one value."""
    values = list(values)
    if not values or min(values) == NO_INSTANCE:
        return ABSENT
    text = f"{statistics.mean(values):{'+' if sign else ''}.{digits}f}"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{text} ± {deviation:.{digits}f}" if deviation else text


def _markdown(header: list[str], lines: list[list[Any]]) -> str:
    rule = ["---"] * len(header)
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [header, rule, *lines])
