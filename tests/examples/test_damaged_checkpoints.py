"""A damaged checkpoint is named and replaced by the one before. Nothing is partly applied."""

from __future__ import annotations

import io
import random
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from survival import SCHEDULE, Brightness, train_brightness
from torch import nn

from mrrcnn import weights
from training import checkpoint
from training.data import make_loader
from training.engine import Options, Schedule, Training

fuzz = settings(
    max_examples=150,
    deadline=2000,  # milliseconds
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def training_of(data, model=None, schedule=SCHEDULE):
    return Training(model or Brightness(), make_loader(data, 8, train=True), schedule, Options())


@pytest.fixture(scope="module")
def content(train_data, tmp_path_factory):
    """The bytes of a checkpoint after one step."""
    path = tmp_path_factory.mktemp("content") / "x.checkpoint.pth"
    training = training_of(train_data)
    training.step()
    training.save(path)
    return path.read_bytes()


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        del data[len(data) // 2 :]
    elif kind == "empty":
        data.clear()
    elif kind == "one bit":
        data[len(data) // 2] ^= 1
    elif kind == "zeros":
        data[:] = bytes(len(data))
    path.write_bytes(data)


@pytest.fixture
def stopped(train_data, tmp_path):
    """A folder with the checkpoints of three and two iterations, and how the training ends."""

    def stop(step):
        if step == 3:
            raise KeyboardInterrupt

    (tmp_path / "whole").mkdir()
    whole = train_brightness(tmp_path / "whole", make_loader(train_data, 8, train=True))
    with pytest.raises(KeyboardInterrupt):
        train_brightness(tmp_path, make_loader(train_data, 8, train=True), Brightness(stop))
    return tmp_path, whole


@pytest.mark.parametrize("kind", ["truncated", "empty", "one bit", "zeros", "missing"])
def test_the_checkpoint_before_takes_a_damaged_ones_place(stopped, train_data, caplog, kind):
    folder, whole = stopped
    path = folder / "x.checkpoint.pth"
    if kind == "missing":
        path.unlink()
    else:
        damage(path, kind)
    assert train_brightness(folder, make_loader(train_data, 8, train=True), resume=True) == whole
    assert f"{path} " in caplog.text
    assert f"going on from {checkpoint.previous(path)}, the checkpoint before" in caplog.text
    assert checkpoint.damaged(path).exists() == (kind != "missing")
    assert [checkpoint.load(x)["iteration"] for x in (path, checkpoint.previous(path))] == [6, 5]


def test_two_damaged_checkpoints_are_an_error_that_names_both_and_changes_neither(
    stopped, train_data
):
    folder, _ = stopped
    paths = [folder / "x.checkpoint.pth", folder / "x.checkpoint.previous.pth"]
    for path in paths:
        damage(path, "one bit")
    before = [path.read_bytes() for path in (*paths, folder / "metrics.jsonl")]
    with pytest.raises(ValueError, match="no checkpoint can be resumed") as error:
        train_brightness(folder, make_loader(train_data, 8, train=True), resume=True)
    assert all(str(path) in str(error.value) for path in paths)
    assert [path.read_bytes() for path in (*paths, folder / "metrics.jsonl")] == before


def test_without_any_checkpoint_a_resumed_training_is_refused_by_name(train_data, tmp_path):
    with pytest.raises(FileNotFoundError, match="x.checkpoint.pth does not exist"):
        training_of(train_data).resume(tmp_path / "x.checkpoint.pth")


def snapshot(training):
    buffer = io.BytesIO()
    torch.save(training._state(), buffer)
    return buffer.getvalue(), training.iteration, training.epoch_batches


def edit(state, kind):
    if kind == "a key is missing":
        del state["model"]["guess.bias"]
    elif kind == "a key is added":
        state["model"]["other"] = torch.zeros(1)
    elif kind == "another shape":
        state["model"]["guess.bias"] = torch.zeros(2)
    elif kind == "another type":
        state["model"]["guess.bias"] = "none"
    elif kind == "an optimizer of fewer parameters":
        state["optimizer"]["param_groups"][0]["params"].pop()
    elif kind == "an optimizer's state of another shape":
        state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    elif kind == "an optimizer without groups":
        state["optimizer"] = {"state": {}}
    elif kind == "another random state":
        state["random"][0]["torch"] = torch.zeros(7, dtype=torch.uint8)
    elif kind == "no random state":
        state["random"] = [None]
    elif kind == "no order":
        del state["order"]
    elif kind == "another order":
        state["order"]["batches"] = "two"


@pytest.mark.parametrize(
    "kind",
    [
        "a key is missing",
        "a key is added",
        "another shape",
        "another type",
        "an optimizer of fewer parameters",
        "an optimizer's state of another shape",
        "an optimizer without groups",
        "another random state",
        "no random state",
        "no order",
        "another order",
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(content, train_data, tmp_path, kind):
    path = tmp_path / "x.checkpoint.pth"
    path.write_bytes(content)
    state = weights.load(path)
    edit(state, kind)
    weights.save(state, path)
    training = training_of(train_data)
    before = snapshot(training)
    with pytest.raises(ValueError, match="x.checkpoint.pth"):
        training.resume(path)
    assert snapshot(training) == before
    assert [x.name for x in tmp_path.iterdir()] == [path.name]


def test_a_checkpoint_of_another_training_changes_nothing(content, train_data, tmp_path):
    path = tmp_path / "x.checkpoint.pth"
    path.write_bytes(content)
    training = training_of(train_data, schedule=Schedule(7, 2e-3, warmup=2))
    before = snapshot(training)
    with pytest.raises(ValueError, match="iterations was 6, now 7"):
        training.resume(path)
    assert snapshot(training) == before


@pytest.mark.parametrize("line", [b'"no record"', b"{}", b"\x00\xff"])
def test_metrics_that_are_no_records_are_named_by_line(stopped, train_data, line):
    folder, _ = stopped
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 4, must be a record"):
        train_brightness(folder, make_loader(train_data, 8, train=True), resume=True)


def load_or_refuse(path):
    """What is in a checkpoint, or None if it is refused by name."""
    try:
        found = checkpoint.load(path)
    except (ValueError, OSError) as error:
        assert str(path) in str(error)
        found = None
    try:
        weights.load_weights(path)
    except (ValueError, OSError) as error:
        assert str(path) in str(error)
    return found


@fuzz
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_checkpoint_with_other_bytes_is_refused_or_read_as_it_was(content, tmp_path, edits):
    data = bytearray(content)
    for place, value in edits:
        data[int(place * (len(data) - 1))] = value
    path = tmp_path / "x.checkpoint.pth"
    path.write_bytes(content)
    expected = checkpoint.load(path)
    path.write_bytes(data)
    found = load_or_refuse(path)
    if found is not None:
        torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)
        torch.testing.assert_close(found["optimizer"], expected["optimizer"], rtol=0, atol=0)


@fuzz
@given(kept=st.floats(0, 1, exclude_max=True))
def test_a_truncated_checkpoint_is_refused(content, tmp_path, kept):
    path = tmp_path / "x.checkpoint.pth"
    path.write_bytes(content[: int(kept * len(content))])
    assert load_or_refuse(path) is None


@fuzz
@given(data=st.binary(max_size=300), start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02"]))
@example(data=b"", start=b"")
def test_bytes_that_are_no_checkpoint_are_refused(tmp_path, data, start):
    path = tmp_path / "x.checkpoint.pth"
    path.write_bytes(start + data)
    assert load_or_refuse(path) is None


@fuzz
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_pickle_with_other_bytes_in_a_whole_archive_is_refused_or_loads(content, tmp_path, edits):
    """Checksums are right, so the unpickler meets the damaged content."""
    path = tmp_path / "x.checkpoint.pth"
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            record = bytearray(old.read(name))
            if name.endswith("data.pkl"):
                for place, value in edits:
                    record[int(place * (len(record) - 1))] = value
            new.writestr(name, bytes(record))
    load_or_refuse(path)


def test_compressed_and_overlapping_records_are_refused(content, tmp_path):
    """A small file must not unpack to a large one."""
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**7))
    with pytest.raises(ValueError, match="bomb.pth.*must not be compressed"):
        weights.load(path)
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.filelist += [new.filelist[0]] * len(content)
    with pytest.raises(ValueError, match="bomb.pth.*must fit in"):
        weights.load(path)


def test_a_wrong_random_state_is_refused_and_sets_no_generator():
    state = checkpoint.random_state()
    state["numpy"] = ("MT19937", torch.zeros(3, dtype=torch.int64), 0, 0, 0.0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(ValueError, match="random_state"):
        checkpoint.check_random_state(state)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_a_module_without_parameters_of_the_checkpoint_is_refused_by_name(
    content, train_data, tmp_path
):
    class Other(Brightness):
        def __init__(self):
            super().__init__()
            self.more = nn.Linear(1, 1)

    path = tmp_path / "x.checkpoint.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x.checkpoint.pth does not fit.*more"):
        training_of(train_data, Other()).resume(path)
