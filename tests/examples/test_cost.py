"""The measured models do the same work with either library's pooling."""

from __future__ import annotations

import json

import pytest
import torch

from cost_mrrcnn import COMPOSED, INFERENCE, OURS, TRAINING, VANILLA, main, with_torchvision_pools
from mrrcnn.model import MRRCNN, RefineConfig


@pytest.mark.parametrize("guide", ["p", "none"])
def test_torchvisions_pools_detect_and_train_the_same(base, batch, guide):
    model = MRRCNN.from_mask_rcnn(base, RefineConfig(guide=guide))
    composed = with_torchvision_pools(model)
    found = [m.eval()(batch[0]) for m in (model, composed)]
    assert len(found[0][0]["boxes"]) > 0
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    losses = []
    for m in (model, composed):
        torch.manual_seed(0)
        losses.append(m.train()(*batch))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)


def test_maps_with_more_cells_than_samples_are_refused(base):
    base.roi_heads.box_roi_pool.sampling_ratio = 3
    with pytest.raises(ValueError, match="one cell of the map per sample"):
        with_torchvision_pools(MRRCNN.from_mask_rcnn(base))


@pytest.mark.slow
def test_every_model_is_timed_with_both_pools(base, tmp_path, capsys):
    weights, rows_file = tmp_path / "base.pth", tmp_path / "rows.jsonl"
    torch.save(base.state_dict(), weights)
    arguments = ["--rounds", "1", "-b", "2", "--device", "cpu", "--json", str(rows_file)]
    rows = main([*arguments, "--weights", str(weights)])
    assert [json.loads(line) for line in rows_file.read_text().splitlines()] == rows
    timed = {(row["mode"], row["model"], row["pooling"]) for row in rows}
    assert timed == {
        (mode, name, pooling)
        for mode, names in (("inference", INFERENCE), ("training step", TRAINING))
        for name in (VANILLA, *names)
        for pooling in (OURS, COMPOSED)
    }
    for row in rows:
        assert row["seconds_per_image"] > 0
        assert (row["refining_share"] == 0) == (row["model"] == VANILLA)
    assert capsys.readouterr().out.count("| inference |") == 2 * (1 + len(INFERENCE))
