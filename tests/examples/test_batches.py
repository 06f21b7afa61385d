"""Every image is drawn in every epoch, however few there are."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from training.batches import ShuffledBatches


def epochs(kinds, batch_size, count=1, **arguments):
    sampler = ShuffledBatches(kinds, batch_size, torch.Generator().manual_seed(0), **arguments)
    result = [list(sampler) for _ in range(count)]
    assert all(len(batches) == len(sampler) for batches in result)
    return result


def test_a_batch_holds_one_kind_and_an_epoch_each_item_once():
    kinds = [i % 3 == 0 for i in range(24)]
    (batches,) = epochs(kinds, 4)
    assert all(len({kinds[i] for i in batch}) == 1 for batch in batches)
    assert sorted(i for batch in batches for i in batch) == list(range(24))


def test_a_kind_that_fills_no_batch_is_mixed_with_another():
    kinds = ["landscape"] * 17 + ["portrait"] * 3
    for batches in epochs(kinds, 4, count=5):
        assert sorted(i for batch in batches for i in batch) == list(range(20))
        mixed = [batch for batch in batches if len({kinds[i] for i in batch}) > 1]
        assert len(mixed) == 1


def test_two_halves_of_a_batch_make_one():
    (batches,) = epochs(["landscape"] * 4 + ["portrait"] * 4, 8)
    assert len(batches) == 1 and sorted(batches[0]) == list(range(8))


def test_the_last_batch_is_filled_with_items_that_are_not_in_it():
    for batches in epochs([0] * 11, 4, count=20):
        assert all(len(set(batch)) == 4 for batch in batches)
        drawn = Counter(i for batch in batches for i in batch)
        assert len(drawn) == 11 and drawn.total() == 12


@pytest.mark.parametrize("items", [1, 3, 7])
def test_fewer_items_than_a_batch_repeat_evenly(items):
    for batches in epochs(["a", "b"] * items, 16, count=3):
        drawn = Counter(i for batch in batches for i in batch)
        assert len(batches) == 1 and drawn.total() == 16 and len(drawn) == 2 * items
        assert max(drawn.values()) - min(drawn.values()) <= 1


def test_no_two_draws_of_any_epoch_have_one_seed():
    result = epochs([i % 3 for i in range(22)], 8, count=4, seeds=True)
    seeds = [seed for batches in result for batch in batches for _, seed in batch]
    assert len(set(seeds)) == len(seeds) == 4 * 24


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one(monkeypatch, processes):
    kinds = [i % 3 for i in range(22)]
    whole = epochs(kinds, 8, count=2, seeds=True)
    monkeypatch.setattr("training.batches.share", lambda size: size // processes)
    parts = []
    for rank in range(processes):
        monkeypatch.setattr("training.batches.rank", lambda rank=rank: rank)
        parts.append(epochs(kinds, 8, count=2, seeds=True))
    for epoch, batches in enumerate(whole):
        for number, batch in enumerate(batches):
            assert sum((part[epoch][number] for part in parts), []) == batch
