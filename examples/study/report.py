"""The study's page: tables in the paper's order, and what they mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from .summary import (
    DIFFERENCES,
    MIN_GROUPS,
    OPTION_DIFFERENCES,
    PLACEBO_DIFFERENCES,
    DataRuns,
    load_runs,
    summarise,
)
from .tables import (
    claims,
    crowding_table,
    data_table,
    detection_table,
    difference_table,
    name_of,
    probe_table,
    recall_table,
    table_4_and_5,
)

ATTRIBUTION = (
    "The photographs of `mushrooms` are by the Pennsylvania State University workspace on Roboflow "
    'Universe ("mushroom detection smart bounding boxes", CC BY 4.0); figures show tiles with '
    "drawings on top. `bin` is from Runnlion/NCSU-ARLab-ICRA2025-RMGC, which states no licence, so "
    "this page has only numbers of it.\n"
)
TERMS = (
    "`shape` and `color` are generated images of crowded shapes; the classes of `shape` are "
    "shapes, of `color` colours. `bin` is photographs of heaped household objects, 20 classes; "
    "each is there in several rotated versions. `mushrooms` is tiles of photographs of touching "
    "mushrooms, one class. RM is the refining module. *Recommended* rows are trained with "
    "`RefineConfig.recommended()`. *Recommended first NMS* rows use the weights of the paper's "
    "settings, evaluated with the recommended NMS before refining. *Equal time* is the training "
    "time of RM + SaRoIAlign as in the paper. An object is *huddled* if the pixels of other "
    "objects in its box exceed 5 % of its own pixels, and *isolated* otherwise.\n"
)
VERDICTS = (
    "A claim is *seen* if its interval lies above 0, *undecided* if the interval contains 0, and "
    "*the contrary* is seen if it lies below 0. A verdict from one seed or fold is on one training "
    f"of each row. With fewer than {MIN_GROUPS} groups of validation images there is no interval "
    "and no verdict.\n"
)
PARTIAL = (
    "Rows that some seeds or folds lack come last, here and below, under a row of the same seeds "
    "or folds with which they can be compared.\n"
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
        "contain the 95 % interval of a paired bootstrap over validation images; for photographs, "
        "over groups of images that show the same heap or growing bed. The interval shows how much "
        "the difference varies with the images, not with the training. `summary.json` has all "
        "differences.\n",
        TERMS,
        ATTRIBUTION,
        "## Data, and how far the base has converged\n",
        data_table(all_runs),
        "## The paper's claims\n",
        VERDICTS,
        claims(all_runs),
        "## Tables 1 and 3: detection\n",
        PARTIAL,
        *_each(all_runs, detection_table),
        "## Differences\n",
        difference_table(all_runs, DIFFERENCES),
        _section(
            "Placebos: is it the shape?",
            difference_table(all_runs, PLACEBO_DIFFERENCES),
            intro="The base is frozen, so all rows refine the same boxes. If only the shape "
            "helped, the last rows would not lie above 0.",
        ),
        "## By crowding\n",
        crowding_table(all_runs),
        "## Figure 1: recall by neighbour\n",
        "Percentage of the objects that a detection of the same class and of any score matches at "
        "IoU 0.5. A "
        "neighbour is an object whose box has an IoU above 0.3 with the object's box. In "
        "parentheses: number of objects, summed over seeds or folds.\n",
        *_each(all_runs, recall_table),
        _section("Options", difference_table(all_runs, OPTION_DIFFERENCES)),
        _section(
            "Tables 4 and 5: one checkpoint of RM + SaRoIAlign, evaluated in several ways",
            *_each(all_runs, table_4_and_5),
        ),
        "## Figure 2: the same object alone and beside a neighbour\n",
        "Scores of the object's box, in percent, for the object alone and beside a neighbour. "
        "*Own*: mean probability of the object's class. *Neighbour's*: mean probability of the "
        "neighbour's class. *Right*: how often the object's class is the most probable.\n",
        *_each(all_runs, probe_table),
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
    return [f"**{name_of(runs)}**\n\n{text}" for runs, text in made if text]


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
