"""The training script's options: presets, overrides, and refused combinations."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from mrrcnn.model import RefineConfig
from train_mrrcnn import parse_arguments
from training.engine import Options
from training.presets import DEMO, PAPER, choose_preset, scale_to_data


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
    assert "refine.OPTION=VALUE" in text
    assert "batch_size_per_image=None" in text and "(p, p+1, gt, none)" in text


def test_set_reaches_the_refining_modules_options():
    argv = ["--set", "refine.alpha=2", "--set", "refine.guide=p+1", "--set", "refine.rematch=false"]
    argv += ["--set", "refine.bbox_reg_weights=(20, 20, 10, 10)"]
    argv += ["--set", "refine.batch_size_per_image=none"]
    config = choose_preset(parse_arguments(argv)).config
    assert config == replace(
        DEMO.config,
        alpha=2,
        guide="p+1",
        rematch=False,
        bbox_reg_weights=(20, 20, 10, 10),
        batch_size_per_image=None,
    )


@pytest.mark.parametrize(
    "override, message",
    [
        ("alpha=1", "refine.OPTION=VALUE, got 'alpha=1'"),
        ("refine.alpha", "refine.OPTION=VALUE"),
        ("refine.beta=1", "class_agnostic_guide.*got 'beta'"),
        ("refine.alpha=much", "alpha must be float, got 'much'"),
        ("refine.alpha=true", "alpha must be float"),
        ("refine.rematch=1", "rematch must be bool"),
        ("refine.bbox_reg_weights=(1, 2)", "bbox_reg_weights must be tuple"),
        ("refine.alpha=-1", "alpha must be >= 0"),
        ("refine.fg_iou_thresh=50", "fg_iou_thresh must be above 0 and at most 1, got 50"),
        ("refine.batch_size_per_image=0", "batch_size_per_image must be >= 1, got 0"),
        ("refine.guide=q", "guide must be one of"),
        ("refine.guide=none", "is the row rm_roialign"),
        ("refine.guide=gt", "needs the ground truth"),
    ],
)
def test_a_wrong_set_is_refused(override, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--set", override])
    assert stop.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(message, error), error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--alpha", "-1"], "alpha must be >= 0"),
        (["--alpha", "nan"], "alpha must be >= 0 and finite, got nan"),
        (["-b", "0"], "at least 1, got 0"),
        (["--ema-decay", "999"], "below 1, got 999"),
        (["--clip-grad-norm", "0"], "clip_grad_norm must be above 0"),
        (["--checkpoint-every", "0"], "checkpoint_every must be at least 1"),
        (["--norm", "batch"], "are for resnet50, resnet101"),
        (["--weights-backbone", "resnet50.pth"], "are for resnet50, resnet101"),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_is_made(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(arguments)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_how_to_train_comes_from_the_command_line():
    argv = ["--amp", "bfloat16", "--clip-grad-norm", "5", "--ema-decay", "0.99"]
    preset = choose_preset(parse_arguments([*argv, "--checkpoint-every", "7"]))
    assert preset.options == Options("bfloat16", 5.0, 0.99, 7)
    assert choose_preset(parse_arguments([])).options == Options()


@pytest.mark.parametrize(
    "backbone, images, arguments, base, refine",
    [
        ("small", 600, [], (3000, 1e-3, "adamw"), (1050, 5e-4, "adamw")),
        ("small", 8, ["--lr", "0.1"], (300, 0.1, "adamw"), (300, 5e-4, "adamw")),
        ("resnet50", 600, ["-b", "8"], (1500, 0.01, "sgd"), (525, 0.001, "sgd")),
        ("resnet50", 10**7, ["--iterations", "7"], (7, 0.005, "sgd"), (90_000, 0.0005, "sgd")),
    ],
)
def test_finetuning_scales_to_data_and_batch(backbone, images, arguments, base, refine):
    needed = ["--preset", "finetune", "--data-path", "mine", "--base", "FILE"]
    args = parse_arguments([*needed, *arguments])
    preset = scale_to_data(choose_preset(args), args, images=images, backbone=backbone)
    for schedule, expected in ((preset.base, base), (preset.refine, refine)):
        found = schedule.iterations, pytest.approx(schedule.lr), schedule.optimizer
        assert found == expected
    assert preset.evaluations == 10


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--preset", "finetune"], "needs --base and data"),
        (["--base", "FILE", "--backbone", "small"], "--base decides --backbone"),
        (["--data-path", "mine", "--proposals", "9"], "are for the small backbone"),
    ],
)
def test_options_that_exclude_each_other_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_recommended_settings_are_one_word_away():
    config = choose_preset(parse_arguments(["--refine", "recommended", "--alpha", "2"])).config
    assert config == replace(DEMO.config, detach_mask=True, refine_nms_thresh=0.8, alpha=2.0)
    needed = ["--preset", "finetune", "--data-path", "mine", "--base", "FILE"]
    config = choose_preset(parse_arguments([*needed, "--refine", "paper"])).config
    assert config == RefineConfig()


def test_vertical_flips_are_for_generated_images():
    for arguments, expected in (([], True), (["--data-path", "coco"], False)):
        preset = choose_preset(parse_arguments(arguments))
        assert preset.horizontal_flip and preset.vertical_flip is expected


@pytest.mark.parametrize("shape", [(128, 128), (60, 200)])
def test_scale_jitter_trains_on_many_sizes_and_detects_at_one(base, shape):
    image = torch.rand(3, *shape)
    base.eval()
    size = base.transform.resize(image)[0].shape
    base.transform.scale_jitter = (0.5, 1.25)
    assert base.transform.resize(image)[0].shape == size
    base.train()
    sides = [base.transform.resize(image)[0].shape[-1] / size[-1] for _ in range(60)]
    assert 0.49 < min(sides) < 0.7 and 1.05 < max(sides) < 1.26
    assert base.transform.min_size == (128,)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--evaluate-every", "0"], "--evaluate-every must be at least 1, got 0"),
        (["--iterations", "0"], "--iterations must be at least 1, got 0"),
        (["--scale-jitter", "2", "1"], "0 < LOW <= HIGH, got 2.0 1.0"),
        (
            ["--backbone", "resnet50_v2", "--norm", "frozen"],
            "--weights-backbone and --norm are for",
        ),
        (
            ["--data-path", "d", "--test-split", "test-dev", "--evaluate-every", "5"],
            "no ground truth",
        ),
    ],
)
def test_what_would_end_a_training_is_refused_before_it(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(arguments)
    assert message in capsys.readouterr().err
