"""The study: rows that are made once, say what they are, and become tables."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

import study_mrrcnn
from mrrcnn import backbones
from mrrcnn.weights import load_weights
from study.huddle import HuddleConfig
from study.report import mean_deviation, write_report
from study_mrrcnn import MAIN_ROWS, PRESETS, ROWS, main

pytestmark = pytest.mark.slow
NAMES = ["rm_roialign", "rm_saroialign", "ceiling", "cls", "alpha=0", "control_time"]
MADE = [
    "mask_r_cnn",
    "rm_roialign",
    "rm_saroialign",
    "ceiling",
    "cls",
    "alpha=0",
    "control",
    "control_time",
]


def run(folder, *arguments):
    common = ["--preset", "smoke", "--device", "cpu", "--results", str(folder / "results")]
    main([*common, "--work-dir", str(folder / "work"), *map(str, arguments)])


def rows_of(folder, seed=0):
    return json.loads((folder / "results" / f"smoke-color-{seed}.json").read_text())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    run(folder, "--seeds", 0, 1, "--rows", *NAMES)
    return folder


def test_rows_come_with_those_that_they_build_upon(study):
    assert [row["row"] for row in rows_of(study)] == MADE
    assert [row["row"] for row in rows_of(study, seed=1)] == MADE


def test_a_row_says_what_it_is_and_what_it_took(study):
    for row in rows_of(study):
        assert row["seed"] == 0 and row["preset"] == "smoke" and row["class_by"] == "color"
        assert row["title"] == ROWS[row["row"]].title
        assert {"torch", "shape_roi_align", "commit", "device", "threads"} <= row["identity"].keys()
        assert row["scores"].keys() == {"all", *row["instances"]}
        assert sum(v for k, v in row["instances"].items() if "q" in k) > 0
        assert row["detect_seconds"] > 0
        if ROWS[row["row"]].weights_of is None:
            assert row["seconds_per_iteration"] > 0
            assert row["probe"].keys() == {"alone", "beside"}


def test_the_configuration_of_a_row_is_the_models(study):
    configs = {row["row"]: row["config"] for row in rows_of(study)}
    assert configs["mask_r_cnn"] is configs["control"] is configs["control_time"] is None
    assert (configs["rm_roialign"]["guide"], configs["rm_saroialign"]["guide"]) == ("none", "p")
    assert configs["ceiling"]["guide"] == "gt"
    assert configs["alpha=0"]["alpha"] == 0 and configs["cls"]["refine_reg"] is False
    assert not any(c["freeze_base"] for c in configs.values() if c)


def test_all_rows_train_as_long_as_their_control(study):
    rows = {row["row"]: row for row in rows_of(study)}
    smoke = PRESETS["smoke"]
    assert rows["mask_r_cnn"]["iterations"] == smoke.base.iterations
    for name in ("control", "rm_roialign", "rm_saroialign"):
        assert rows[name]["iterations"] == smoke.refine.iterations
    assert rows["control_time"]["iterations"] == round(
        rows["rm_saroialign"]["train_seconds"] / rows["control"]["seconds_per_iteration"]
    )


def test_seeds_train_other_weights_on_the_same_data(study):
    weights = [
        load_weights(study / "work" / f"smoke-color-{seed}" / "mask_r_cnn.pth") for seed in (0, 1)
    ]
    assert not torch.equal(
        weights[0]["backbone.stem.0.weight"], weights[1]["backbone.stem.0.weight"]
    )
    assert [r["instances"] for r in rows_of(study)] == [r["instances"] for r in rows_of(study, 1)]
    assert len(list((study / "work").glob("huddle-*/huddle.json"))) == 1


def test_rows_that_are_there_are_not_made_again(study, monkeypatch):
    before = (study / "results" / "smoke-color-0.json").read_bytes()
    monkeypatch.setattr(study_mrrcnn, "train", None)
    monkeypatch.setattr(study_mrrcnn, "detect", None)
    run(study, "--seeds", 0, "--rows", *NAMES)
    assert (study / "results" / "smoke-color-0.json").read_bytes() == before


def test_an_interrupted_study_goes_on_where_it_stopped(study, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(study_mrrcnn, "neighbour_effect", interrupt)
        run(tmp_path, "--seeds", 0, "--rows", "mask_r_cnn")
    assert not (tmp_path / "results").exists()
    run(tmp_path, "--seeds", 0, "--rows", "mask_r_cnn")
    run(tmp_path, "--seeds", 0, "--rows", "rm_roialign")
    assert [row["row"] for row in rows_of(tmp_path)] == ["mask_r_cnn", "rm_roialign"]
    for again, whole in zip(rows_of(tmp_path), rows_of(study), strict=False):
        assert again["scores"] == whole["scores"] and again["probe"] == whole["probe"]


def test_lost_weights_are_trained_again(study):
    weights = study / "work" / "smoke-color-0" / "rm_saroialign.pth"
    before = weights.read_bytes()
    weights.unlink()
    run(study, "--seeds", 0, "--rows", "alpha=2")
    assert [row["row"] for row in rows_of(study)] == [*MADE, "alpha=2"]
    assert weights.read_bytes() == before


def test_rows_of_other_settings_are_not_mixed_in(study, monkeypatch):
    changed = replace(PRESETS["smoke"], batch_size=3)
    monkeypatch.setitem(PRESETS, "smoke", changed)
    with pytest.raises(SystemExit, match="rows of other settings"):
        run(study, "--seeds", 0, "--rows", "mask_r_cnn")


def test_the_report_has_a_line_for_every_row_and_every_table(study):
    text = (study / "results" / "README.md").read_text()
    for heading in ("Tables 1 and 3", "Differences", "Table 4", "Table 5", "Figure 2"):
        assert f"### {heading}" in text
    assert "q <= 0.05 | 0.05 < q <= 0.8 | q > 0.8" in text
    for name in (
        "mask_r_cnn",
        "control",
        "rm_roialign",
        "rm_saroialign",
        "ceiling",
        "control_time",
    ):
        assert text.count(f"| {ROWS[name].title} |") >= 3, name
    assert "±" in text


def test_the_study_draws_what_the_models_find(study):
    report = (study / "results" / "README.md").read_text()
    for name in ("smoke-color-0-figure2.png", "smoke-color-0-figure5.png"):
        assert f"]({name})" in report
        with Image.open(study / "results" / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_the_gpu_preset_starts(tmp_path, monkeypatch):
    """Its model, optimizer and mixed precision, on few images and few proposals."""

    def few_proposals(*arguments):
        model = backbones.resnet50_from_scratch(*arguments)
        model.rpn._post_nms_top_n = {"training": 20, "testing": 10}
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 8
        model.roi_heads.detections_per_img = 5
        return model

    preset = PRESETS["gpu"]
    short = replace(
        preset,
        data=HuddleConfig(train_images=2, val_images=1, image_size=64),
        batch_size=2,
        base=replace(preset.base, iterations=2),
        refine=replace(preset.refine, iterations=2),
        probe_pairs=1,
    )
    monkeypatch.setitem(PRESETS, "gpu", short)
    monkeypatch.setitem(backbones.BUILDERS, preset.backbone, few_proposals)
    run(tmp_path, "--preset", "gpu", "--seeds", 0, "--rows", "rm_saroialign")
    rows = json.loads((tmp_path / "results" / "gpu-color-0.json").read_text())
    assert [(row["row"], row["iterations"]) for row in rows] == [
        ("mask_r_cnn", 2),
        ("rm_saroialign", 2),
    ]
    assert rows[0]["settings"]["amp"] == "bfloat16"
    lines = (tmp_path / "work" / "gpu-color-0" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4
    shutil.rmtree(tmp_path / "work")  # half a gigabyte of weights


def record(row, seed, box, mask):
    scores = {"bbox": dict.fromkeys(("AP", "AP50", "AP75"), box)}
    scores["segm"] = dict.fromkeys(("AP", "AP50", "AP75"), mask)
    settings = {
        "data": {"train_images": 1, "val_images": 1, "image_size": 64},
        "base": {"iterations": 5},
        "refine": {"iterations": 4},
        "backbone": "small",
        "batch_size": 2,
    }
    identity = dict.fromkeys(
        ("device", "threads", "torch", "torchvision", "shape_roi_align", "commit"), "x"
    )
    return {
        "row": row,
        "title": ROWS[row].title,
        "preset": "hand",
        "class_by": "color",
        "seed": seed,
        "scores": {"all": scores, "q > 0.8": scores},
        "instances": {"q > 0.8": 7},
        "settings": settings,
        "identity": identity,
    }


def test_tables_hold_means_deviations_and_paired_differences(tmp_path):
    figures = {
        "rm_roialign": [(30.0, 20.0), (34.0, 22.0)],
        "rm_saroialign": [(35.0, 21.0), (37.0, 25.0)],
    }
    for seed in (0, 1):
        rows = [record(name, seed, *values[seed]) for name, values in figures.items()]
        (tmp_path / f"{seed}.json").write_text(json.dumps(rows))
    lines = write_report(tmp_path).read_text().splitlines()
    cells = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in lines if "|" in line}
    difference = cells["RM + SaRoIAlign over RM + RoIAlign"]
    assert difference[0] == "+4.0 ± 1.4 (2.8)"  # of 5 and 3
    assert difference[3].split(" |")[0] == "+2.0 ± 1.4 (1.4)"  # of 1 and 3
    main_row = next(line for line in lines if line.startswith("| RM + SaRoIAlign |"))
    assert main_row.split(" | ")[1] == "36.0 ± 1.4"


def test_one_seed_has_no_deviation():
    assert mean_deviation([12.34]) == "12.3"
    assert mean_deviation([1.0, 3.0], sign=True) == "+2.0 ± 1.4"
    assert mean_deviation([]) == mean_deviation([-1.0, -1.0]) == "-"


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no rows"):
        main(["--report-only", "--results", str(tmp_path)])


def test_the_most_telling_rows_come_first():
    assert list(MAIN_ROWS)[:4] == ["mask_r_cnn", "control", "rm_roialign", "rm_saroialign"]
