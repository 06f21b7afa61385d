"""Predictions on image files, from weights to drawings."""

from __future__ import annotations

import contextlib
import json
import sys
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from mrrcnn.backbones import build_mask_rcnn, find_architecture
from mrrcnn.model import MRRCNN, save_model
from mrrcnn.weights import load_weights
from predict_mrrcnn import COCO_CLASSES, main, read_image_ids
from training import video
from training.video import frame_rate, read_frames, writing_frames

SIZE = (150, 91)  # width, height


@pytest.fixture
def photograph(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    path = tmp_path / "photograph.jpg"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def weights(base, tmp_path):
    """Weights of an untrained model, whose scores are about 1 / 5."""
    path = tmp_path / "model.pth"
    MRRCNN.from_mask_rcnn(base).save(path)
    return path


def predict(tmp_path, *arguments):
    output = tmp_path / "out"
    records = main([*map(str, arguments), "--output-dir", str(output), "--device", "cpu"])
    assert json.loads((output / "detections.json").read_text()) == records
    return records, output


def test_an_untrained_model_draws_on_an_image_of_its_size(photograph, weights, tmp_path):
    records, output = predict(tmp_path, photograph, "--weights", weights, "--score-threshold", 0.05)
    detections = records[0]["detections"]
    assert len(detections) > 0
    for found in detections:
        x, y, w, h = found["bbox"]
        assert x >= 0 and y >= 0 and x + w <= SIZE[0] + 1e-3 and y + h <= SIZE[1] + 1e-3
        assert coco_mask.decode(found["segmentation"]).shape == SIZE[::-1]
        assert found["category"] == str(found["category_id"])
    with Image.open(output / "photograph.png") as drawn, Image.open(photograph) as original:
        assert drawn.size == SIZE
        assert np.abs(np.asarray(drawn, int) - np.asarray(original, int)).max() > 50


def test_a_threshold_that_nothing_reaches_leaves_the_image_as_it_is(photograph, weights, tmp_path):
    records, output = predict(tmp_path, photograph, "--weights", weights, "--score-threshold", 1)
    assert records[0]["detections"] == []
    with Image.open(output / "photograph.png") as drawn, Image.open(photograph) as original:
        assert np.abs(np.asarray(drawn, int) - np.asarray(original, int)).max() <= 1


def test_the_refining_options_take_effect(photograph, weights, tmp_path):
    arguments = [photograph, "--weights", weights, "--score-threshold", 0.05]
    scores = [
        [d["score"] for d in predict(tmp_path, *arguments, *options)[0][0]["detections"]]
        for options in ([], ["--set", "refine.alpha=0"], ["--set", "refine.guide=none"])
    ]
    assert scores[0] != scores[1] != scores[2] != scores[0]


def test_weights_without_a_refining_module_are_mask_r_cnn(photograph, base, tmp_path):
    path = tmp_path / "vanilla.pth"
    save_model(base, path)
    records, _ = predict(tmp_path, photograph, "--weights", path, "--score-threshold", 0.05)
    with Image.open(photograph) as picture:
        pixels = torch.from_numpy(np.asarray(picture) / np.float32(255)).permute(2, 0, 1)
    expected = base.eval()([pixels])[0]
    assert [d["score"] for d in records[0]["detections"]] == pytest.approx(
        expected["scores"].tolist(), abs=1e-5
    )


def test_classes_are_named_after_an_annotation_file(photograph, weights, huddle_root, tmp_path):
    annotations = huddle_root / "annotations" / "instances_val2017.json"
    records, _ = predict(
        tmp_path,
        *(photograph, "--weights", weights, "--score-threshold", 0.05),
        *("--class-names", annotations),
    )
    names = {1: "red", 2: "green", 3: "cyan", 4: "purple"}
    assert records[0]["detections"]
    for found in records[0]["detections"]:
        assert found["category"] == names[found["category_id"]]


def test_images_of_one_name_have_drawings_of_their_own(photograph, weights, tmp_path):
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / photograph.name
    twin.write_bytes(photograph.read_bytes())
    _, output = predict(tmp_path, photograph, twin, "--weights", weights)
    assert {p.name for p in output.glob("*.png")} == {"photograph-1.png", "photograph-2.png"}


@pytest.mark.slow
def test_torchvisions_weights_predict_what_torchvision_predicts(photograph, publish, tmp_path):
    torch.manual_seed(0)
    published = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=64, max_size=106
    ).eval()
    for module in published.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
            module.running_var.fill_(1e-4)  # an epsilon of 1e-5 would show
            nn.init.constant_(module.weight, 1e-2)
    path = tmp_path / "published.pth"
    torch.save(published.state_dict(), path)
    publish(path)
    records, _ = predict(
        tmp_path,
        *(photograph, "--weights", path, "--image-size", 64, "--score-threshold", 0),
    )
    with Image.open(photograph) as picture:
        pixels = torch.from_numpy(np.asarray(picture) / np.float32(255)).permute(2, 0, 1)
    expected = published([pixels])[0]
    detections = records[0]["detections"]
    assert len(detections) == len(expected["scores"])
    # At lower scores, rounding decides which of many similar boxes survive suppression.
    surest = [d["score"] for d in detections[:20]]
    assert surest == pytest.approx(expected["scores"][:20].tolist(), abs=1e-3)
    assert all(d["category"] == COCO_CLASSES[d["category_id"]] for d in detections)


@pytest.mark.parametrize("name", ["small", "resnet50", "resnet50_v2"])
def test_the_architecture_follows_from_the_parameters(name):
    with torch.device("meta"):
        state = build_mask_rcnn(name, 7, 128).state_dict()
    assert find_architecture(state) == name


def fails(capsys, tmp_path, *arguments):
    with pytest.raises(SystemExit) as stop:
        predict(tmp_path, *arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_what_is_wrong_with_a_file_is_said(photograph, weights, huddle_root, tmp_path, capsys):
    text, other = tmp_path / "text.jpg", tmp_path / "other.pth"
    text.write_text("no image")
    torch.save({"weight": torch.zeros(1)}, other)
    bare = tmp_path / "bare.pth"
    torch.save(load_weights(weights), bare)
    (tmp_path / "empty").mkdir()
    annotations = huddle_root / "annotations" / "instances_val2017.json"
    absent = tmp_path / "absent"
    for arguments, message in (
        ((absent, "--weights", weights), f"{absent} does not exist"),
        ((photograph, "--weights", absent), f"{absent} does not exist"),
        ((photograph, "--weights", other), "must hold the parameters of a Mask R-CNN"),
        ((photograph, "--weights", text), f"{text} must be a complete file of weights"),
        ((photograph, "--weights", weights, "--refine", "paper"), "change them with --set"),
        ((photograph, "--weights", bare), "pass --refine paper and --set"),
        ((tmp_path / "empty", "--weights", weights), "holds no image"),
        (
            (photograph, "--weights", weights, "--annotations", annotations),
            "must list every image once",
        ),
        ((photograph, "--weights", weights, "--class-names", text), "COCO annotation file"),
        ((photograph, "--weights", weights, "--set", "refine.mask_flow=none"), "mask_flow"),
        ((photograph, "--weights", weights, "--set", "refine.guide=gt"), "the ground truth"),
        ((photograph, "--weights", weights, "--set", "alpha=0"), "got 'alpha=0'"),
    ):
        assert message in fails(capsys, tmp_path, *arguments)


def test_unreadable_files_are_named_and_the_others_predicted(photograph, weights, tmp_path, capsys):
    text, cut = tmp_path / "text.jpg", tmp_path / "cut.jpg"
    text.write_text("no image")
    cut.write_bytes(photograph.read_bytes()[:-800])
    with pytest.raises(SystemExit, match="2 of 3 files could not be read"):
        predict(tmp_path, text, cut, photograph, "--weights", weights)
    said = capsys.readouterr().err
    assert f"{text} must be a picture" in said and f"{cut} must be a picture" in said
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [record["file"] for record in records] == [str(photograph)]
    assert (tmp_path / "out" / "photograph.png").exists()


def test_a_folder_means_the_images_in_it(huddle_root, weights, tmp_path):
    folder = huddle_root / "val2017"
    records, _ = predict(tmp_path, folder, "--weights", weights)
    assert [record["file"] for record in records] == [str(p) for p in sorted(folder.iterdir())]


def test_results_have_the_annotation_files_image_ids_and_the_weights_category_ids(
    huddle_root, base, tmp_path
):
    base.card.category_ids = [10, 20, 30, 40]
    base.card.class_names = ["__background__", "a", "b", "c", "d"]
    save_model(base, tmp_path / "model.pth")
    annotations = huddle_root / "annotations" / "instances_val2017.json"
    records, output = predict(
        tmp_path,
        *(huddle_root / "val2017", "--weights", tmp_path / "model.pth"),
        *("--annotations", annotations, "--score-threshold", 0.05),
    )
    truth = COCO(annotations)
    results = json.loads((output / "results.json").read_text())
    assert {r["image_id"] for r in results} <= set(truth.getImgIds())
    assert {r["category_id"] for r in results} <= {10, 20, 30, 40}
    named = {(d["category_id"], d["category"]) for r in records for d in r["detections"]}
    assert named <= {(10, "a"), (20, "b"), (30, "c"), (40, "d")} and named


def test_a_video_is_drawn_frame_by_frame(weights, tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "video.mp4"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    with writing_frames(path, Fraction(5)) as add:
        for frame in pixels:
            add(Image.fromarray(frame))
    records, output = predict(tmp_path, path, "--weights", weights, "--score-threshold", 0.05)
    assert [record["frame"] for record in records] == [0, 1, 2]
    drawn = list(read_frames(output / "video.mp4"))
    assert [frame.size for frame in drawn] == [(96, 64)] * 3
    assert frame_rate(output / "video.mp4") == 5


def test_images_of_one_name_take_the_ids_of_their_folders(photograph, weights, tmp_path):
    entries = []
    for number, folder in enumerate("ab", start=1):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(photograph.read_bytes())
        entries.append({"id": number, "file_name": f"{folder}/1.jpg"})
    annotations = tmp_path / "images.json"
    annotations.write_text(json.dumps({"images": entries}))
    files = [tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg"]
    assert read_image_ids(annotations, files) == dict(zip(files, (1, 2), strict=True))
    with pytest.raises(ValueError, match="list every image once; see .*photograph"):
        read_image_ids(annotations, [photograph])
    entries[1]["file_name"] = "c/1.jpg"
    entries[0]["file_name"] = "d/1.jpg"
    annotations.write_text(json.dumps({"images": entries}))
    with pytest.raises(ValueError, match="list every image once"):
        read_image_ids(annotations, files)


@pytest.mark.parametrize("rate", [(53580000, 1787411), (1000000, 33333), (30000, 1001), (1, 3)])
def test_any_frame_rate_is_written(tmp_path, monkeypatch, rate):
    pytest.importorskip("av")
    stream = SimpleNamespace(average_rate=Fraction(*rate))
    opened = SimpleNamespace(streams=SimpleNamespace(video=[stream]))
    monkeypatch.setattr(video, "_opened", lambda _: contextlib.nullcontext(opened))
    taken = frame_rate(tmp_path)
    assert float(taken) == pytest.approx(max(1.0, float(Fraction(*rate))), rel=1e-3)
    with writing_frames(tmp_path / "video.mp4", taken) as add:
        add(Image.new("RGB", (32, 32)))


def test_a_broken_video_leaves_the_photographs_and_no_half_video(photograph, weights, tmp_path):
    pytest.importorskip("av")
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(SystemExit, match="1 of 2 files could not be read"):
        predict(tmp_path, photograph, text, "--weights", weights)
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [record["file"] for record in records] == [str(photograph)]
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_a_failure_in_a_video_leaves_none(tmp_path):
    pytest.importorskip("av")
    writing = writing_frames(tmp_path / "video.mp4", Fraction(5))
    with pytest.raises(ValueError, match="half way"), writing as add:
        add(Image.new("RGB", (32, 32)))
        raise ValueError("half way")
    assert not list(tmp_path.iterdir())


def test_a_video_without_a_decoder_is_refused(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "video.mp4").write_bytes(b"")
    said = fails(capsys, tmp_path, tmp_path / "video.mp4", "--weights", weights)
    assert "pip install av" in said
