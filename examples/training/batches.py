"""Batches of a shuffled data set, in an order that a checkpoint can hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch.utils.data import RandomSampler, Sampler

from .distributed import rank, share


class ShuffledBatches(Sampler[list[Any]]):
    """Batches of indices in random order. The order can be resumed from a checkpoint.

    An epoch draws every item. All items of a batch are of one kind, except in the last batches of
    an epoch, which hold the rest of each kind. Items that are drawn a second time, in a new order,
    fill the last batch. If there are fewer items than ``batch_size``, they are repeated as often as
    needed.

    The order does not depend on the number of processes: each takes its part of every batch.

    Args:
        kinds: the kind of each item, such as images in portrait.
        batch_size: of all processes together.
        generator: decides the order.
        seeds: yield (index, seed) instead of an index, a seed for each draw.
    """

    def __init__(
        self,
        kinds: Sequence[Hashable],
        batch_size: int,
        generator: torch.Generator,
        *,
        seeds: bool = False,
    ):
        self.kinds = kinds
        self.batch_size = batch_size
        self.generator = generator
        self.seeds = seeds
        self.epoch = -1  # the running epoch
        self._started = generator.get_state()  # the generator's state when it began
        self._skip: int | None = None  # batches to skip after load_state_dict

    def __len__(self) -> int:
        return -(-len(self.kinds) // self.batch_size)

    def __iter__(self) -> Iterator[list[Any]]:
        if self._skip is None:
            self.epoch += 1
            self._started = self.generator.get_state()
        else:
            self.generator.set_state(self._started)
        skip, self._skip = self._skip or 0, None
        own = slice(rank() * share(self.batch_size), (rank() + 1) * share(self.batch_size))
        first_seed = self.generator.initial_seed() + self.epoch * len(self) * self.batch_size
        for number, batch in enumerate(self._epoch()):
            if number >= skip:
                first = first_seed + number * self.batch_size
                seeded = [(index, first + place) for place, index in enumerate(batch)]
                yield (seeded if self.seeds else batch)[own]

    def _epoch(self) -> Iterator[list[int]]:
        """All batches of an epoch, of all processes."""
        waiting: dict[Hashable, list[int]] = defaultdict(list)
        for index in self._shuffled():
            batch = waiting[self.kinds[index]]
            batch.append(index)
            if len(batch) == self.batch_size:
                yield waiting.pop(self.kinds[index])
        left = list(chain.from_iterable(waiting.values()))
        while len(left) % self.batch_size:
            left += self._fillers(left)
        for start in range(0, len(left), self.batch_size):
            yield left[start : start + self.batch_size]

    def _fillers(self, left: list[int]) -> list[int]:
        """Items to fill the last batch, as far as possible ones that are not in it."""
        missing = -len(left) % self.batch_size
        last = set(left[len(left) - len(left) % self.batch_size :])
        if len(last) == len(self.kinds):
            last = set()
        return [index for index in self._shuffled() if index not in last][:missing]

    def _shuffled(self) -> RandomSampler:
        return RandomSampler(self.kinds, generator=self.generator)

    def state_dict(self, batches: int) -> dict[str, Any]:
        """State to resume after ``batches`` batches of the running epoch. The caller counts them,
        because a loader reads ahead."""
        return {"epoch": self.epoch, "generator": self._started, "batches": batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self._started = state["epoch"], state["generator"]
        self._skip = state["batches"]
