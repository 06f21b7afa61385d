"""Rows of the study become differences with intervals, verdicts and tables."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from study.bootstrap import SERIES, STEP
from study.report import write_report
from study.rows import GROUPS, ROWS
from study.summary import crowding_gain, difference, load_runs
from study.tables import mean_deviation, verdict
from study_mrrcnn import main


def write_run(folder, number, figures, draws, data="shape", groups=12):
    """A file as of ``study.run`` with rows of box and mask AP, the same in all subsets.

    Args:
        draws: box and mask AP of each draw, by row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identity = dict.fromkeys(("device", "torch", "torchvision", "shape_roi_align"), "x")
    rows = {}
    for name, (box, mask) in figures.items():
        scores = {
            "bbox": dict.fromkeys(("AP", "AP50", "AP75"), box),
            "segm": dict.fromkeys(("AP", "AP50", "AP75"), mask),
        }
        subsets = ("all", "q <= 0.05", "huddled")
        rows[name] = {
            "scores": dict.fromkeys(subsets, scores),
            "held_out": {"bbox": box, "segm": mask},
            "identity": identity,
        }
    content = {
        "name": f"cpu-{data}-{number}",
        "run": number,
        "settings": {"image_size": 1, "base": {"iterations": 5}, "refine": {"iterations": 4}},
        "images": [5, 1, 3],
        "groups": groups,
        "instances": {"q <= 0.05": 4, "q > 0.8": 3, "huddled": 3},
        "rows": rows,
    }
    path = folder / f"cpu-{data}-{number}.json"
    path.write_text(json.dumps(content))
    steps = {
        name: np.stack([np.rint(np.array(v) / STEP) for _ in range(3) for v in values])
        for name, values in draws.items()
    }
    np.savez_compressed(path.with_suffix(".npz"), **{k: v.astype("i2") for k, v in steps.items()})


def test_differences_are_averaged_over_runs_before_the_interval_is_taken(tmp_path):
    """The differences of the two runs are +1 and +3 in one draw, +3 and +1 in the next, and so on.
    The mean difference is +2 in every draw."""
    sway = np.tile([1.0, -1.0], 500)
    flat = np.full(1000, 30.0)
    for number, sign in ((0, 1), (1, -1)):
        write_run(
            tmp_path / "runs",
            number,
            {"control": (30.0, 20.0), "rm_saroialign": (32.0 + sign, 21.0)},
            {"control": (flat, flat), "rm_saroialign": (flat + 2 + sign * sway, flat + sway)},
        )
    (runs,) = load_runs(tmp_path / "runs")
    box = difference(runs, "rm_saroialign", "control")
    assert (box.mean, box.low, box.high) == pytest.approx((2.0, 2.0, 2.0))
    assert box.spread == pytest.approx(2**0.5) and box.runs == 2
    mask = difference(runs, "rm_saroialign", "control", "huddled", "segm")
    assert (mask.mean, mask.low, mask.high) == pytest.approx((1.0, 0.0, 2.0))
    assert verdict(box) == "seen" and verdict(mask) == "undecided"
    assert verdict(replace(mask, high=-0.1)) == "the contrary"
    assert verdict(replace(mask, low=0.04)) == "undecided"  # +0.0 on the page
    assert difference(runs, "rm_saroialign", "rm_roialign") is None


def test_a_gain_on_huddled_objects_is_compared_with_that_on_isolated_ones(tmp_path):
    flat = np.full(1000, 30.0)
    sway = np.tile([1.0, -1.0], 500)
    write_run(
        tmp_path / "runs",
        0,
        {"control": (30.0, 20.0), "rm_saroialign": (32.0, 21.0)},
        {"control": (flat, flat), "rm_saroialign": (flat, flat)},
    )
    (runs,) = load_runs(tmp_path / "runs")
    runs.rows["rm_saroialign"][0]["scores"]["huddled"] = {"bbox": {"AP": 35.0}}
    runs.draws["rm_saroialign"][0][SERIES.index(("huddled", "bbox"))] += 5 + sway
    runs.draws["rm_saroialign"][0][SERIES.index(("q <= 0.05", "bbox"))] += 2
    gain = crowding_gain(runs, "rm_saroialign", "control")
    assert (gain.mean, gain.low, gain.high) == pytest.approx((3.0, 2.0, 4.0))


def test_an_interval_surrounds_the_mean(tmp_path):
    """Draws that contain easier classes shift AP of one row more than AP of the other."""
    sway = np.tile([1.0, -1.0], 500)
    write_run(
        tmp_path / "runs",
        0,
        {"control": (30.0, 20.0), "rm_saroialign": (32.0, 21.0)},
        {"control": (sway + 33, sway), "rm_saroialign": (2 * sway + 37, sway)},
    )
    (runs,) = load_runs(tmp_path / "runs")
    box = difference(runs, "rm_saroialign", "control")
    assert (box.mean, box.low, box.high) == pytest.approx((2.0, 1.0, 3.0))


def test_folds_do_not_vary_together(tmp_path):
    """Each fold's gain is +1 or +3 at random. If both folds took the same draws, so would the
    mean."""
    sway = np.tile([1.0, -1.0], 500)
    for fold in (0, 1):
        write_run(
            tmp_path / "runs",
            fold,
            {"control": (30.0, 20.0), "rm_saroialign": (32.0, 20.0)},
            {"control": (sway + 30, sway), "rm_saroialign": (2 * sway + 32, sway)},
            data="bin",
        )
    (runs,) = load_runs(tmp_path / "runs")
    for row in ("control", "rm_saroialign"):
        draws = [runs.draws[row][fold][0] for fold in (0, 1)]
        assert abs(np.corrcoef(draws)[0, 1]) < 0.1
    gains = runs.draws["rm_saroialign"][1][0] - runs.draws["control"][1][0]
    assert np.allclose(abs(gains - 2), 1)  # the rows of a fold are still paired


def test_few_groups_give_no_interval_and_no_verdict(tmp_path):
    draws = np.full(1000, 30.0)
    names = ("mask_r_cnn", "control", "rm_saroialign_recommended")
    write_run(
        tmp_path / "runs",
        0,
        {name: (30.0 + i, 20.0) for i, name in enumerate(names)},
        {name: (draws + i, draws) for i, name in enumerate(names)},
        data="mushrooms",
        groups=9,
    )
    text = write_report(tmp_path).read_text()
    assert "| no verdict: +1.0 | no verdict: +0.0 | 1 |" in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {(entry["groups"], entry["interval"]) for entry in summary} == {(9, False)}


def test_a_row_that_some_runs_lack_is_shown_beside_rows_of_the_same_runs(tmp_path):
    draws = np.full(1000, 30.0)
    for number, box in ((0, 30.0), (1, 50.0)):
        names = ["mask_r_cnn", "rm_saroialign", *(["control_time"] if number == 0 else [])]
        write_run(
            tmp_path / "runs",
            number,
            {name: (box + i, 20.0) for i, name in enumerate(names)},
            dict.fromkeys(names, (draws, draws)),
        )
    text = write_report(tmp_path).read_text()
    table = text[text.index("## Tables 1 and 3") : text.index("## Differences")]
    lines = [line.split("|")[1:3] for line in table.rstrip().splitlines()[-4:]]
    paper, time = ROWS["rm_saroialign"].title, ROWS["control_time"].title
    assert [[cell.strip() for cell in line] for line in lines] == [
        [ROWS["mask_r_cnn"].title, "40.0 ± 14.1"],
        [paper, "41.0 ± 14.1"],
        [f"{paper}: of the rows below", "31.0"],
        [time, "32.0"],
    ]


def test_evaluations_of_one_checkpoint_are_averaged_over_the_same_runs(tmp_path):
    names = ["mask_r_cnn", "rm_saroialign", *GROUPS["evaluations"]]
    draws = np.full(1000, 30.0)
    for number, box in ((0, 30.0), (1, 40.0)):
        made = names if number == 0 else names[:2]
        write_run(
            tmp_path / "runs",
            number,
            dict.fromkeys(made, (box, 20.0)),
            dict.fromkeys(made, (draws, draws)),
        )
    text = write_report(tmp_path).read_text()
    (line,) = (each for each in text.splitlines() if each.startswith("| box |"))
    assert line.split("|")[2:-1] == [" 30.0 "] * 10 + [" 1 "]


def test_the_summary_has_every_difference(tmp_path):
    draws = np.full(1000, 30.0)
    names = ("mask_r_cnn", "rm_saroialign_recommended", "control", "control_time")
    write_run(
        tmp_path / "runs",
        0,
        {name: (30.0 + i, 20.0) for i, name in enumerate(names)},
        {name: (draws + i, draws) for i, name in enumerate(names)},
        data="bin",
    )
    write_report(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary[1] == {
        "data": "bin",
        "preset": "cpu",
        "real": True,
        "a": "rm_saroialign_recommended",
        "b": "control_time",
        "time": "equal_time",
        "seeds": 1,
        "groups": 12,
        "interval": True,
        "box": [-2.0, -2.0, -2.0],
        "mask": [0.0, 0.0, 0.0],
    }
    assert [(e["a"], e["b"]) for e in summary] == [
        ("rm_saroialign_recommended", "control"),
        ("rm_saroialign_recommended", "control_time"),
        ("control", "mask_r_cnn"),
    ]


def test_a_difference_of_minus_one_is_no_empty_bin():
    assert mean_deviation([-1.0], sign=True) == "-1.0"
    assert mean_deviation([-1.0]) == "-"


def test_one_seed_has_no_deviation():
    assert mean_deviation([12.34]) == "12.3"
    assert mean_deviation([1.0, 3.0], sign=True) == "+2.0 ± 1.4"
    assert mean_deviation([]) == mean_deviation([-1.0, -1.0]) == "-"


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no rows"):
        main(["--report-only", "--results", str(tmp_path)])
