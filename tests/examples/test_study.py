"""The study's runs: rows are made once, name their settings, and are on the page."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import study.run
import study_mrrcnn
from mrrcnn import backbones
from mrrcnn.weights import load_weights
from study.bootstrap import SERIES, STEP, resample
from study.datasets.huddle import HuddleConfig
from study.rows import MAIN, ROWS
from study.settings import PRESETS
from study_mrrcnn import main

pytestmark = pytest.mark.slow
NAMES = ["rm_saroialign", "rm_saroialign_recommended", "placebo_turned", "alpha=0", "ceiling"]
MADE = ["mask_r_cnn", *NAMES]
DRAWS = 40


@pytest.fixture(scope="module", autouse=True)
def short():
    """Few draws and timed steps. One thread: threads that wait for one another take processor time,
    most of all beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.run, "resample", partial(resample, draws=DRAWS))
        patch.setattr(study.run, "COST_ROUNDS", 5)
        yield
    torch.set_num_threads(threads)


def run(folder, *arguments):
    common = ["--preset", "smoke", "--device", "cpu", "--results", str(folder / "results")]
    folders = ["--work-dir", str(folder / "work"), "--data-dir", str(folder / "data")]
    main([*common, *folders, *map(str, arguments)])


def file_of(folder, number=0):
    return folder / "results" / "runs" / f"smoke-shape-{number}.json"


def rows_of(folder, number=0):
    return json.loads(file_of(folder, number).read_text())["rows"]


def weights_of(folder, name, number=0):
    (path,) = (folder / "work" / f"smoke-shape-{number}").glob(f"{name}-????????.pth")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    run(folder, "--runs", 0, "--rows", *NAMES, "control", "control_time")
    run(folder, "--runs", 1, "--rows", *NAMES)
    return folder


def test_rows_come_with_those_that_they_build_upon(made):
    assert list(rows_of(made)) == [*MADE, "control", "control_time"]
    assert list(rows_of(made, 1)) == MADE


def test_a_row_says_what_it_is_and_what_it_took(made):
    for name, row in rows_of(made).items():
        assert row["title"] == ROWS[name].title
        assert {"torch", "shape_roi_align", "commit", "device", "threads"} <= row["identity"].keys()
        bins = json.loads(file_of(made).read_text())["instances"]
        assert row["scores"].keys() == {"all", *bins}
        if ROWS[name].weights_of is None:
            assert row["iterations"] > 0
            assert row["probe"].keys() == {"alone", "beside"}
        assert ("held_out" in row) == (name in ("mask_r_cnn", "control"))


def test_the_configuration_of_a_row_is_the_models(made):
    configs = {name: row["config"] for name, row in rows_of(made).items()}
    assert configs["mask_r_cnn"] is configs["control"] is configs["control_time"] is None
    assert configs["rm_saroialign"]["detach_mask"] is False
    assert configs["rm_saroialign_recommended"]["detach_mask"] is True
    assert configs["ceiling"]["guide"] == "gt"
    assert configs["alpha=0"]["alpha"] == 0
    assert [name for name, c in configs.items() if c and c["freeze_base"]] == ["placebo_turned"]


def test_rows_train_equally_long_or_as_much_longer_as_an_iteration_is_cheaper(made):
    rows = rows_of(made)
    smoke = PRESETS["smoke"]["shape"]
    assert rows["mask_r_cnn"]["iterations"] == smoke.base.iterations
    for name in ("control", "rm_saroialign", "placebo_turned", "ceiling"):
        assert rows[name]["iterations"] == smoke.refine.iterations
    timed = rows["control_time"]
    ratio = timed["cost"]["rm_saroialign"] / timed["cost"]["control_time"]
    assert timed["iterations"] == pytest.approx(smoke.refine.iterations * ratio, abs=0.6)
    assert ratio > 1


def test_every_row_keeps_draws_around_its_ap(made):
    with np.load(file_of(made).with_suffix(".npz")) as draws:
        assert set(draws) == set(rows_of(made))
        for name, row in rows_of(made).items():
            assert draws[name].shape == (len(SERIES), DRAWS) and draws[name].dtype == np.int16
            for (subset, iou_type), steps in zip(SERIES, draws[name], strict=True):
                expected = row["scores"][subset][iou_type]["AP"]
                assert steps.min() * STEP - 0.1 <= expected <= steps.max() * STEP + 0.1


def test_seeds_train_other_weights_on_the_same_data(made):
    weights = [load_weights(weights_of(made, "mask_r_cnn", seed)) for seed in (0, 1)]
    assert not torch.equal(
        weights[0]["backbone.stem.0.weight"], weights[1]["backbone.stem.0.weight"]
    )
    assert len(list((made / "work").glob("huddle-*/huddle.json"))) == 1


def test_rows_that_are_there_are_not_made_again(made, monkeypatch):
    before = file_of(made, 1).read_bytes()
    monkeypatch.setattr(study.run, "train", None)
    monkeypatch.setattr(study.run, "detect", None)
    run(made, "--runs", 1, "--rows", *NAMES)
    assert file_of(made, 1).read_bytes() == before


def test_rows_of_another_base_are_not_mixed(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "study")
    file = file_of(folder, 1)
    kept = json.loads(file.read_text())
    kept["rows"]["mask_r_cnn"]["scores"]["all"]["segm"]["AP"] += 1
    file.write_text(json.dumps(kept))
    with pytest.raises(SystemExit, match="segm AP"):
        run(folder, "--runs", 1, "--rows", "alpha=2")
    assert rows_of(folder, 1).keys() == set(MADE)


def test_an_interrupted_study_goes_on_where_it_stopped(made, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(study.run, "neighbour_effect", interrupt)
        run(tmp_path, "--rows", "mask_r_cnn")
    assert not (tmp_path / "results").exists()
    run(tmp_path, "--rows", "mask_r_cnn")
    run(tmp_path, "--rows", "rm_saroialign")
    assert list(rows_of(tmp_path)) == ["mask_r_cnn", "rm_saroialign"]
    for name, row in rows_of(tmp_path).items():
        whole = rows_of(made)[name]
        assert row["scores"] == whole["scores"] and row["probe"] == whole["probe"]


def test_lost_weights_are_trained_again(made):
    weights = weights_of(made, "rm_saroialign", 1)
    before = weights.read_bytes()
    weights.unlink()
    run(made, "--runs", 1, "--rows", "alpha=2")
    assert list(rows_of(made, 1)) == [*MADE, "alpha=2"]
    assert weights.read_bytes() == before


def test_weights_of_other_settings_are_not_taken(made, tmp_path, monkeypatch):
    shutil.copytree(made / "work", tmp_path / "work")
    setting = PRESETS["smoke"]["shape"]
    shorter = replace(setting, base=replace(setting.base, iterations=2))
    monkeypatch.setitem(PRESETS["smoke"], "shape", shorter)
    run(tmp_path, "--rows", "mask_r_cnn")
    assert rows_of(tmp_path)["mask_r_cnn"]["iterations"] == 2


def test_rows_of_other_settings_are_not_mixed_in(made, monkeypatch):
    changed = replace(PRESETS["smoke"]["shape"], batch_size=3)
    monkeypatch.setitem(PRESETS["smoke"], "shape", changed)
    with pytest.raises(SystemExit, match="rows of other settings"):
        run(made, "--rows", "mask_r_cnn")


def test_the_report_has_every_table_and_picture(made):
    run(made, "--rows", "rm_roialign", "rm_saroialign_frozen", "detached", "evaluations")
    text = (made / "results" / "README.md").read_text()
    for heading in (
        "Data, and how far the base has converged",
        "The paper's claims",
        "Tables 1 and 3",
        "Differences",
        "Placebos",
        "By crowding",
        "Figure 1",
        "Options",
        "Tables 4 and 5",
        "Figure 2",
    ):
        assert f"## {heading}" in text
    for name in ("control", "rm_roialign", "rm_saroialign", "control_time"):
        assert text.count(f"| {ROWS[name].title} |") >= 3, name
    for name in ("smoke-shape-0-figure2.png", "smoke-shape-0-figure5.png"):
        assert f"]({name})" in text
        with Image.open(made / "results" / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_the_gpu_preset_starts(tmp_path, monkeypatch):
    """Its model, optimizer and mixed precision, on few images and few proposals."""

    def few_proposals(*arguments):
        model = backbones.resnet50_from_scratch(*arguments)
        model.rpn._post_nms_top_n = {"training": 20, "testing": 10}
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 8
        model.roi_heads.detections_per_img = 5
        return model

    setting = PRESETS["gpu"]["shape"]
    short = replace(
        setting,
        image_size=64,
        generated=HuddleConfig(train_images=3, val_images=1, image_size=64),
        batch_size=2,
        base=replace(setting.base, iterations=2),
        refine=replace(setting.refine, iterations=2),
        probe_pairs=1,
    )
    monkeypatch.setitem(PRESETS["gpu"], "shape", short)
    monkeypatch.setitem(backbones.BUILDERS, setting.backbone, few_proposals)
    run(tmp_path, "--preset", "gpu", "--rows", "rm_saroialign")
    kept = json.loads((tmp_path / "results" / "runs" / "gpu-shape-0.json").read_text())
    assert {name: row["iterations"] for name, row in kept["rows"].items()} == {
        "mask_r_cnn": 2,
        "rm_saroialign": 2,
    }
    assert kept["settings"]["amp"] == "bfloat16"
    shutil.rmtree(tmp_path / "work")  # half a gigabyte of weights


@pytest.mark.parametrize("device, channels_last", [("cpu", False), ("meta", True)])
def test_models_are_channels_last_on_a_gpu(device, channels_last):
    """The meta device stands for a GPU."""
    model = study.run.to_device(backbones.build_mask_rcnn("small", 3, 64), device)
    assert {parameter.device.type for parameter in model.parameters()} == {device}
    wide = [p for p in model.parameters() if p.dim() == 4 and min(p.shape) > 1]
    assert wide
    for weight in wide:
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_photographs_without_a_licence_are_not_pictured(tmp_path, monkeypatch):
    pictured = []

    class Recorder:
        def __init__(self, *arguments, **_):
            self.name = arguments[2]

        def make(self, names):
            pass

        def picture(self):
            pictured.append(self.name)

    monkeypatch.setattr(study_mrrcnn, "Run", Recorder)
    monkeypatch.setattr(study_mrrcnn, "open_splits", lambda *_: None)
    monkeypatch.setattr(study_mrrcnn, "write_report", lambda folder: folder)
    run(tmp_path, "--data", "shape", "bin", "mushrooms", "--runs", 0, 1)
    assert pictured == ["smoke-shape-0", "smoke-mushrooms-0"]


def test_the_most_telling_rows_come_first():
    assert list(MAIN)[:4] == [
        "mask_r_cnn",
        "control",
        "rm_roialign",
        "rm_saroialign_recommended",
    ]
