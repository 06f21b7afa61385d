"""Tables in Markdown from the rows of study_mrrcnn.py."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Rows = dict[str, list[Record]]  # row name -> its records, one per seed

ABSENT = "-"
NO_INSTANCE = -1.0  # AP of a bin that is empty
COLUMNS = [
    (f"{kind} {metric}", iou_type, metric)
    for kind, iou_type in (("box", "bbox"), ("mask", "segm"))
    for metric in ("AP", "AP50", "AP75")
]
DIFFERENCES = (
    ("rm_roialign", "control", "RM + RoIAlign over the control"),
    ("rm_saroialign", "rm_roialign", "RM + SaRoIAlign over RM + RoIAlign"),
    ("rm_saroialign", "control", "RM + SaRoIAlign over the control"),
    ("rm_saroialign", "control_time", "RM + SaRoIAlign over the control of equal time"),
    ("detached", "rm_roialign", "RM + SaRoIAlign, P detached, over RM + RoIAlign"),
    ("detached", "control", "RM + SaRoIAlign, P detached, over the control"),
    ("detached", "rm_saroialign", "RM + SaRoIAlign: P detached over P not detached"),
    (
        "rm_saroialign_pre_nms",
        "rm_roialign_pre_nms",
        "every proposal refined: RM + SaRoIAlign over RM + RoIAlign",
    ),
    (
        "rm_saroialign_pre_nms",
        "control",
        "RM + SaRoIAlign, every proposal refined, over the control",
    ),
    (
        "detached_recrop",
        "control",
        "RM + SaRoIAlign, P detached, flow cropped anew, over the control",
    ),
    (
        "detached_recompute",
        "control",
        "RM + SaRoIAlign, P detached, flow recomputed, over the control",
    ),
)
ALPHAS = ("0", "0.1", "0.2", "0.5", "1", "2", "5", "10")
# Rows whose own tables they are in; the main table has the others.
TABLES_OF_THEIR_OWN = {"cls", *(f"alpha={alpha}" for alpha in ALPHAS)}


def write_report(folder: Path) -> Path:
    """``folder/README.md`` from all ``folder/*.json``.

    Raises:
        FileNotFoundError: there are no rows.
    """
    groups: dict[tuple[str, str], Rows] = defaultdict(lambda: defaultdict(list))
    for file in sorted(folder.glob("*.json")):
        for record in json.loads(file.read_text()):
            groups[record["preset"], record["class_by"]][record["row"]].append(record)
    if not groups:
        raise FileNotFoundError(f"{folder} has no rows: run study_mrrcnn.py without --report-only")
    path = folder / "README.md"
    path.write_text(
        "# Mask R-CNN and MR R-CNN on generated images\n\n"
        "Written by `python examples/study_mrrcnn.py --report-only` from the rows beside it. "
        "AP in percent, mean ± standard deviation over the seeds; seconds are the processor's on a "
        "CPU, the clock's on a GPU.\n"
        + "".join(
            format_group(*key, rows) + _pictures(folder, *key)
            for key, rows in sorted(groups.items())
        )
    )
    return path


def _pictures(folder: Path, preset: str, class_by: str) -> str:
    """Of one seed."""
    figures = {
        2: "Figure 2: class scores of the control and of MR R-CNN for an object's box",
        5: "Figure 5: what the two detect where objects are crowded",
    }
    text = ""
    for number, title in figures.items():
        found = sorted(folder.glob(f"{preset}-{class_by}-*-figure{number}.png"))
        text += f"\n![{title}]({found[0].name})\n" if found else ""
    return text


def format_group(preset: str, class_by: str, rows: Rows) -> str:
    """All tables of one data set."""
    parts = [
        f"\n## Preset {preset}, class by {class_by}\n",
        _describe(rows),
        "### Tables 1 and 3: detection\n",
        _detection_table(rows),
        "### Differences\n",
        "Of the same seed's rows; in brackets how many of their own standard deviations.\n",
        _difference_table(rows),
        "### By how much the instance is crowded\n",
        "q: pixels of other instances in the box per pixel of the instance. IoU: of its box with "
        "another's, the largest.\n",
        _bin_table(rows, "bbox"),
        _bin_table(rows, "segm"),
    ]
    if "cls" in rows:
        parts += ["### Table 4: what is refined\n", _table_4(rows)]
    if any(name.startswith("alpha=") for name in rows):
        parts += ["### Table 5: weight of the refined class scores\n", _table_5(rows)]
    if any("probe" in record for records in rows.values() for record in records):
        parts += [
            "### Figure 2: the same object alone and beside a neighbour\n",
            "Of the object's box, in percent: mean probability of the object's class and of the "
            "neighbour's, and how often the object's is the most probable.\n",
            _probe_table(rows),
        ]
    return "\n".join(parts)


def _describe(rows: Rows) -> str:
    records = [record for group in rows.values() for record in group]
    settings = records[0]["settings"]
    data, base, refine = settings["data"], settings["base"], settings["refine"]
    instances = sum(v for k, v in records[0]["instances"].items() if "q" in k)

    def all_of(key: str) -> str:
        return ", ".join(sorted({str(record["identity"][key]) for record in records}))

    seeds = ", ".join(str(seed) for seed in sorted({record["seed"] for record in records}))
    return (
        f"{data['train_images']} training and {data['val_images']} validation images of "
        f"{data['image_size']} pixels with {instances} instances; backbone {settings['backbone']}; "
        f"batches of {settings['batch_size']}; mask alignment "
        f"{settings.get('mask_alignment', 'torchvision')}; "
        f"{base['iterations']} iterations of Mask R-CNN, "
        f"{refine['iterations']} more for each other row; seeds {seeds}. {all_of('device')}, "
        f"{all_of('threads')} threads; torch {all_of('torch')}, torchvision "
        f"{all_of('torchvision')}, shape_roi_align {all_of('shape_roi_align')}, commit "
        f"{all_of('commit')}.\n"
    )


def _detection_table(rows: Rows) -> str:
    names = [name for name in rows if name not in TABLES_OF_THEIR_OWN]
    header = ["", *(column for column, _, _ in COLUMNS), "iterations", "s / iteration", "seeds"]
    lines = []
    for name in names:
        records = rows[name]
        cells = [mean_deviation(_ap(r, i, m) for r in records) for _, i, m in COLUMNS]
        trained = [r for r in records if "iterations" in r]
        cells += [
            mean_deviation((r["iterations"] for r in trained), digits=0),
            mean_deviation((r["seconds_per_iteration"] for r in trained), digits=2),
            str(len(records)),
        ]
        lines.append([records[0]["title"], *cells])
    return _markdown(header, lines)


def _difference_table(rows: Rows) -> str:
    lines = []
    for first, second, title in DIFFERENCES:
        if first in rows and second in rows:
            cells = [_difference(rows, first, second, i, m) for _, i, m in COLUMNS]
            lines.append([title, *cells])
    return _markdown(["", *(column for column, _, _ in COLUMNS)], lines)


def _difference(rows: Rows, first: str, second: str, iou_type: str, metric: str) -> str:
    others = {record["seed"]: record for record in rows[second]}
    values = [
        _ap(record, iou_type, metric) - _ap(others[record["seed"]], iou_type, metric)
        for record in rows[first]
        if record["seed"] in others
    ]
    text = mean_deviation(values, sign=True)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{text} ({statistics.mean(values) / deviation:.1f})" if deviation else text


def _bin_table(rows: Rows, iou_type: str) -> str:
    names = [name for name in rows if name not in TABLES_OF_THEIR_OWN]
    counts = rows[names[0]][0]["instances"]
    kind = {"bbox": "box AP", "segm": "mask AP"}[iou_type]
    lines = [["instances", *(str(count) for count in counts.values())]]
    for name in names:
        cells = [
            mean_deviation(r["scores"][split][iou_type]["AP"] for r in rows[name])
            for split in counts
        ]
        lines.append([rows[name][0]["title"], *cells])
    return _markdown([kind, *counts], lines)


def _table_4(rows: Rows) -> str:
    lines = [
        [title, *_box_and_mask(rows.get(name, []))]
        for name, title in (
            ("mask_r_cnn", "Mask R-CNN"),
            ("control", "Mask R-CNN, trained on"),
            ("cls", "CLS only"),
            ("alpha=0", "REG only"),
            ("rm_saroialign", "both"),
        )
    ]
    return _markdown(["", "box AP", "mask AP"], lines)


def _table_5(rows: Rows) -> str:
    by_alpha = {alpha: rows.get(f"alpha={alpha}", []) for alpha in ALPHAS} | {"1": rows["sara"]}
    columns = [_box_and_mask(by_alpha[alpha]) for alpha in ALPHAS]
    lines = [
        [kind, *cells]
        for kind, cells in zip(("box AP", "mask AP"), zip(*columns, strict=True), strict=True)
    ]
    return _markdown(["alpha", *ALPHAS], lines)


def _probe_table(rows: Rows) -> str:
    header = ["", "own, alone", "beside", "neighbour's, alone", "beside", "right, alone", "beside"]
    lines = []
    for records in rows.values():
        probed = [record for record in records if "probe" in record]
        if probed:
            cells = [
                mean_deviation(record["probe"][where][what] for record in probed)
                for what in ("own", "neighbour", "right")
                for where in ("alone", "beside")
            ]
            lines.append([probed[0]["title"], *cells])
    return _markdown(header, lines)


def _box_and_mask(records: list[Record]) -> list[str]:
    return [
        mean_deviation(_ap(r, iou_type, "AP") for r in records) for iou_type in ("bbox", "segm")
    ]


def _ap(record: Record, iou_type: str, metric: str) -> float:
    return record["scores"]["all"][iou_type][metric]


def mean_deviation(values: Iterable[float], *, digits: int = 1, sign: bool = False) -> str:
    """As in ``12.3 ± 0.4``: the sample's standard deviation, from two values on."""
    values = list(values)
    if not values or min(values) == NO_INSTANCE:
        return ABSENT
    text = f"{statistics.mean(values):{'+' if sign else ''}.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def _markdown(header: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(header)
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [header, rule, *lines])
