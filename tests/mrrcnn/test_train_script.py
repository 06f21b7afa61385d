"""The command line, from generated data to the table."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from mrrcnn.backbones import build_mask_rcnn
from train_mrrcnn import BASE, DEMO, GUIDES, PAPER, choose_preset, main, parse_arguments

ROWS = [BASE, *GUIDES]


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    scores = main(["--quick", "--output-dir", str(output), "--device", "cpu"])
    return output, scores


def test_a_quick_run_scores_three_models(quick_run):
    output, scores = quick_run
    record = json.loads((output / "results.json").read_text())
    assert list(scores) == ROWS
    assert record["scores"] == scores
    for row in scores.values():
        assert row.keys() == {"all", "isolated", "huddled"}
        for cell in row.values():
            assert 0 <= cell["bbox"]["AP"] <= 100 and 0 <= cell["segm"]["AP"] <= 100


def test_a_quick_run_logs_the_losses_of_all_phases(quick_run):
    records = [json.loads(x) for x in (quick_run[0] / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(r["phase"] for r in records)) == ROWS


def test_a_quick_run_pictures_ground_truth_and_both_models(quick_run):
    with Image.open(quick_run[0] / "comparison.png") as picture:
        assert picture.width // 3 > 200
        assert picture.getextrema() != ((255, 255),) * 3


def test_the_base_is_the_same_in_all_saved_weights(quick_run):
    base, rm, sara = (
        torch.load(quick_run[0] / f"{name}.pth", weights_only=True)
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
    assert list(scores) == ROWS
    assert not (tmp_path / "out" / "mask_r_cnn.pth").exists()
    assert not (tmp_path / "out" / "huddle").exists()


def test_the_defaults_are_the_demo():
    assert choose_preset(parse_arguments([])) == DEMO


def test_a_data_path_means_the_papers_schedule():
    preset = choose_preset(parse_arguments(["--data-path", "coco"]))
    assert preset == PAPER
    assert (preset.refine.iterations, preset.refine.lr, preset.batch_size) == (9000, 0.002, 16)
    assert [preset.refine.factor(i) for i in (0, 5999, 6000, 8999)] == [1, 1, 0.1, 0.1]


def test_options_override_the_preset():
    preset = choose_preset(
        parse_arguments(["--refine-iterations", "7", "--lr", "0.5", "-b", "3", "--no-freeze-base"])
    )
    assert (preset.refine.iterations, preset.base.lr, preset.batch_size) == (7, 0.5, 3)
    assert preset.base.iterations == DEMO.base.iterations
    assert preset.config.freeze_base is False
    assert preset.config.batch_size_per_image == DEMO.config.batch_size_per_image


def test_help_names_the_options_that_matter(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(option in text for option in ("--data-path", "--quick", "--seed", "--output-dir"))
