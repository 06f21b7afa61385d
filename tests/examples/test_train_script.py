"""The training script, from data to the table; its options are in test_train_options.py."""

from __future__ import annotations

import contextlib
import io
import json
import shutil

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import train_mrrcnn
from mrrcnn.backbones import build_mask_rcnn
from mrrcnn.model import RefineConfig, load_model
from mrrcnn.weights import load_weights
from train_mrrcnn import Experiment, main, parse_arguments
from training.data import CocoInstances
from training.engine import Training
from training.presets import ROWS, SARA


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    scores = main(["--quick", "--output-dir", str(output), "--device", "cpu"])
    return output, scores


def test_a_quick_run_scores_three_models(quick_run):
    output, scores = quick_run
    record = json.loads((output / "results.json").read_text())
    assert list(scores) == list(ROWS)
    assert record["scores"] == scores
    for row in scores.values():
        assert row.keys() == {"all", "isolated", "huddled"}
        for cell in row.values():
            assert 0 <= cell["bbox"]["AP"] <= 100 and 0 <= cell["segm"]["AP"] <= 100


def test_a_quick_run_logs_the_losses_of_all_phases(quick_run):
    records = [json.loads(x) for x in (quick_run[0] / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(r["phase"] for r in records)) == list(ROWS)


def test_a_quick_run_pictures_ground_truth_and_both_models(quick_run):
    with Image.open(quick_run[0] / "comparison.png") as picture:
        assert picture.width // 3 > 200
        assert picture.getextrema() != ((255, 255),) * 3


def test_the_base_is_the_same_in_all_saved_weights(quick_run):
    base, rm, sara = (
        load_weights(quick_run[0] / f"{name}.pth")
        for name in ("mask_r_cnn", "rm_roialign", "rm_saroialign")
    )
    for key, value in base.items():
        assert torch.equal(rm[key], value) and torch.equal(sara[key], value), key
    assert rm.keys() == sara.keys() > base.keys()
    assert any(not torch.equal(rm[key], sara[key]) for key in rm)


def test_a_given_folder_and_base_are_used(quick_run, tmp_path):
    torch.manual_seed(1)
    weights = tmp_path / "base.pth"
    torch.save(build_mask_rcnn("small", 5, 128).state_dict(), weights)
    arguments = ["--quick", "--preset", "demo", "--no-freeze-base", "--device", "cpu"]
    arguments += ["--data-path", str(quick_run[0] / "huddle"), "--base", str(weights)]
    scores = main([*arguments, "--output-dir", str(tmp_path / "out")])
    assert list(scores) == list(ROWS)
    assert not (tmp_path / "out" / "mask_r_cnn.pth").exists()
    assert not (tmp_path / "out" / "huddle").exists()


def test_the_next_command_names_weights_that_exist(quick_run, tmp_path, capsys):
    """A base that is only scored is not written again."""
    weights = quick_run[0] / "mask_r_cnn.pth"
    arguments = ["--quick", "--preset", "demo", "--device", "cpu", "--rows", "mask_r_cnn"]
    arguments += ["--data-path", str(quick_run[0] / "huddle"), "--base", str(weights)]
    main([*arguments, "--output-dir", str(tmp_path / "out")])
    assert f"--weights {weights}\n" in capsys.readouterr().out


def test_test_only_scores_the_weights_of_a_run_and_writes_the_servers_result_files(quick_run):
    output, scores = quick_run
    before = (output / "metrics.jsonl").read_text()
    arguments = ["--quick", "--device", "cpu", "--output-dir", str(output)]
    assert main([*arguments, "--test-only", "--save-detections"]) == scores
    assert (output / "metrics.jsonl").read_text() == before
    assert json.loads((output / "test_results.json").read_text())["scores"] == scores

    annotations = output / "huddle/annotations/instances_val2017.json"
    results = json.loads((output / "rm_saroialign.detections.json").read_text())
    keys = {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert results and all(r.keys() == keys for r in results)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(annotations)
        for kind, dropped in (("bbox", "segmentation"), ("segm", "bbox")):
            kept = [{k: v for k, v in r.items() if k != dropped} for r in results]
            evaluation = COCOeval(coco, coco.loadRes(kept), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            expected = scores[SARA]["all"][kind]["AP"]
            assert 100 * evaluation.stats[0] == pytest.approx(expected, abs=1e-9)


def test_without_huddled_instances_any_images_are_pictured(quick_run, monkeypatch):
    output, _ = quick_run
    (output / "comparison.png").unlink()
    monkeypatch.setattr(
        train_mrrcnn, "instance_splits", lambda _: {"all": None, "isolated": None, "huddled": set()}
    )
    arguments = ["--quick", "--device", "cpu", "--output-dir", str(output), "--test-only"]
    main([*arguments, "--rows", "mask_r_cnn", "rm_saroialign"])
    assert (output / "comparison.png").exists()


def test_test_dev_needs_no_ground_truth_and_no_weights_but_the_models(quick_run, tmp_path):
    output, _ = quick_run
    shutil.copy(output / "rm_saroialign.pth", tmp_path)
    coco = json.loads((output / "huddle/annotations/instances_val2017.json").read_text())
    del coco["annotations"]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/image_info_test-dev2017.json").write_text(json.dumps(coco))
    (tmp_path / "test2017").symlink_to(output / "huddle/val2017")
    arguments = ["--preset", "demo", "--device", "cpu", "--data-path", str(tmp_path), "--test-only"]
    arguments += ["--test-split", "test-dev", "--rows", "rm_saroialign"]
    assert main([*arguments, "--output-dir", str(tmp_path)]) == {}
    results = json.loads((tmp_path / "rm_saroialign.detections.json").read_text())
    assert {r["image_id"] for r in results} <= {image["id"] for image in coco["images"]}
    assert results


def test_a_run_resumes_between_and_within_its_phases(quick_run, tmp_path, monkeypatch):
    """Stopped once while the base trains and once while a refined model trains."""
    output, scores = quick_run
    arguments = ["--quick", "--device", "cpu", "--output-dir", str(tmp_path)]
    arguments += ["--checkpoint-every", "2"]
    step, stops = Training.step, [(12, 5), (3, 2)]  # schedule's length, iteration

    def interrupted_step(self):
        if stops and stops[0] == (self.schedule.iterations, self.iteration):
            del stops[0]
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Training, "step", interrupted_step)
    for resume in ([], ["--resume"]):
        with pytest.raises(KeyboardInterrupt):
            main([*arguments, *resume])
    assert main([*arguments, "--resume"]) == scores
    for slug in ROWS:
        first, second = (load_weights(folder / f"{slug}.pth") for folder in (output, tmp_path))
        assert all(torch.equal(first[key], second[key]) for key in first)
    logs = [(folder / "metrics.jsonl").read_text() for folder in (output, tmp_path)]
    assert logs[0].count("\n") == logs[1].count("\n")


def test_a_fresh_run_forgets_the_checkpoints_of_a_former_one(tmp_path, monkeypatch):
    names = ("", ".previous", ".damaged")
    stale = [tmp_path / f"rm_roialign.checkpoint{name}.pth" for name in names]
    for path in stale:
        path.write_bytes(b"of another run")
    monkeypatch.setattr(Training, "step", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["--quick", "--device", "cpu", "--output-dir", str(tmp_path)])
    assert not any(path.exists() for path in stale)


def test_a_wrong_folder_is_named_with_what_is_there(quick_run, tmp_path):
    wrong = quick_run[0] / "huddle/annotations"
    arguments = ["--output-dir", str(tmp_path), "--data-path", str(wrong)]
    with pytest.raises(FileNotFoundError) as error:
        main(arguments)
    assert "train2017/" in str(error.value) and "annotations/instances_train" in str(error.value)
    assert f"{wrong} holds instances_train2017.json, instances_val2017.json" in str(error.value)


def test_a_missing_folder_is_named_with_the_nearest_there_is(tmp_path):
    (tmp_path / "cocoa").mkdir()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds cocoa/"):
        CocoInstances(tmp_path / "coco" / "here", "train")


@pytest.fixture
def two_classes(huddle_root, tmp_path):
    """The generated images with two categories: a folder that is not the weights' data."""
    root = tmp_path / "mine"
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"{split}2017").symlink_to(huddle_root / f"{split}2017")
        name = f"instances_{split}2017.json"
        content = json.loads((huddle_root / "annotations" / name).read_text())
        content["categories"] = [{"id": 1, "name": "warm"}, {"id": 2, "name": "cold"}]
        for annotation in content["annotations"]:
            annotation["category_id"] = 1 if annotation["category_id"] in (1, 4) else 2
        (root / "annotations" / name).write_text(json.dumps(content))
    return root


FINETUNE = ["--preset", "finetune", "--device", "cpu", "--quick", "--evaluate-every", "6"]


@pytest.mark.parametrize("kind", ["own", "bare", "reference"])
def test_finetuning_takes_other_classes_from_any_file(quick_run, two_classes, tmp_path, kind):
    own = quick_run[0] / "rm_saroialign.pth"
    given = tmp_path / "given.pth"
    state = load_model(own, refined=False).state_dict()
    content = {"own": None, "bare": state, "reference": {"model": state, "epoch": 3, "args": {}}}
    if kind == "own":
        given = own
    else:
        torch.save(content[kind], given)
    output = tmp_path / "out"
    arguments = [*FINETUNE, "--data-path", str(two_classes), "--base", str(given)]
    arguments += ["--proposals", "40", "--anchor-sizes", "12", "24", "48"]
    scores = main([*arguments, "--output-dir", str(output)])
    assert list(scores) == ["mask_r_cnn", "rm_saroialign"]
    model = load_model(output / "rm_saroialign.pth")
    assert model.card.class_names == ["__background__", "warm", "cold"]
    assert model.card.num_classes == 3 and model.transform.mask_alignment == "exact"
    assert model.roi_heads.config == RefineConfig.recommended()
    assert model.rpn.post_nms_top_n() == 40
    assert model.rpn.anchor_generator.sizes == ((12,), (24,), (48,))
    for name, last in (("mask_r_cnn", 12), ("rm_saroialign", 3)):
        record = json.loads((output / f"{name}.best.json").read_text())
        assert record["iteration"] in (6, last)
        assert load_model(output / f"{name}.best.pth").card == model.card


def test_classes_of_other_names_start_new_predictors(quick_run, huddle_root, tmp_path):
    root = tmp_path / "mine"
    shutil.copytree(huddle_root, root)
    for path in (root / "annotations").iterdir():
        path.write_text(path.read_text().replace('"red"', '"rose"'))
    base = ["--base", str(quick_run[0] / "mask_r_cnn.pth"), "--data-path", str(root)]
    with pytest.raises(SystemExit, match="red.*rose.*--preset finetune"):
        main(["--preset", "demo", "--quick", "--device", "cpu", *base])
    run = Experiment(parse_arguments([*FINETUNE, *base]), torch.device("cpu"))
    fitted = run._fit_classes(run.given)
    key = "roi_heads.box_predictor.cls_score.weight"
    given = load_weights(quick_run[0] / "mask_r_cnn.pth")[key]
    assert fitted.state_dict()[key].shape == given.shape
    assert not torch.equal(fitted.state_dict()[key], given)


@pytest.mark.slow
def test_published_weights_take_the_files_category_ids_for_labels(huddle_root, tmp_path):
    """COCO's 80 categories have ids up to 90, and the published weights 91 outputs."""
    root = tmp_path / "mine"
    shutil.copytree(huddle_root, root)
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        for entry in content["categories"]:
            entry["id"] *= 2
        for entry in content["annotations"]:
            entry["category_id"] *= 2
        path.write_text(json.dumps(content))
    torch.manual_seed(0)
    torch.save(build_mask_rcnn("small", 9, 128).state_dict(), tmp_path / "published.pth")
    arguments = ["--preset", "demo", "--quick", "--device", "cpu", "--data-path", str(root)]
    arguments += ["--rows", "rm_saroialign", "--output-dir", str(tmp_path / "out")]
    main([*arguments, "--base", str(tmp_path / "published.pth")])
    card = load_model(tmp_path / "out" / "rm_saroialign.pth").card
    assert card.num_classes == 9 and card.category_ids == list(range(1, 9))
    assert card.class_names[2] == "red" and card.class_names[1] == "N/A"
    assert list(main([*arguments, "--test-only"])) == ["rm_saroialign"]


def test_other_classes_need_training(quick_run, two_classes, tmp_path):
    arguments = ["--preset", "demo", "--quick", "--device", "cpu", "--data-path", str(two_classes)]
    arguments += ["--base", str(quick_run[0] / "mask_r_cnn.pth"), "--output-dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="has .*red, .* the data have 3: .*--preset finetune"):
        main(arguments)


def test_scoring_on_the_way_changes_no_weight(quick_run, tmp_path):
    again = ["--quick", "--device", "cpu", "--evaluate-every", "2", "--rows", "mask_r_cnn"]
    main([*again, "--output-dir", str(tmp_path)])
    paths = (folder / "mask_r_cnn.pth" for folder in (tmp_path, quick_run[0]))
    scored, plain = map(load_weights, paths)
    assert all(torch.equal(scored[key], plain[key]) for key in plain)


def test_a_finetuned_folder_is_scored_by_its_own_weights(quick_run, two_classes, tmp_path):
    base = str(quick_run[0] / "mask_r_cnn.pth")
    arguments = [*FINETUNE, "--data-path", str(two_classes), "--base", base]
    arguments += ["--output-dir", str(tmp_path / "out")]
    trained = main(arguments)
    tested = main([*arguments, "--test-only"])
    assert tested == trained


def test_settings_and_alignment_take_effect_on_trained_rows(quick_run, monkeypatch):
    models = []
    monkeypatch.setattr(Experiment, "evaluate", lambda self, model, name: models.append(model))
    arguments = ["--quick", "--device", "cpu", "--output-dir", str(quick_run[0]), "--test-only"]
    main([*arguments, "--refine", "recommended", "--mask-alignment", "torchvision"])
    assert len(models) == 3
    assert {model.transform.mask_alignment for model in models} == {"torchvision"}
    assert {model.roi_heads.config.refine_nms_thresh for model in models[1:]} == {0.8}


def test_the_picture_names_the_models_that_it_shows(quick_run, monkeypatch):
    titles = []
    monkeypatch.setattr(
        train_mrrcnn, "compare", lambda data, chosen, models, path: titles.extend(models)
    )
    arguments = ["--quick", "--device", "cpu", "--output-dir", str(quick_run[0]), "--test-only"]
    main([*arguments, "--rows", "mask_r_cnn", "rm_roialign"])
    assert titles == ["mask_r_cnn", "rm_roialign"]


@pytest.mark.slow
def test_a_score_that_was_interrupted_is_made_again(tmp_path, monkeypatch):
    arguments = ["--quick", "--device", "cpu", "--rows", "mask_r_cnn", "--evaluate-every", "6"]
    arguments += ["--checkpoint-every", "6"]
    main([*arguments, "--output-dir", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "_scores", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main([*arguments, "--output-dir", str(tmp_path / "parts")])
    main([*arguments, "--output-dir", str(tmp_path / "parts"), "--resume"])
    whole, parts = (
        (tmp_path / name / "mask_r_cnn.best.json").read_text() for name in ("whole", "parts")
    )
    assert whole == parts
