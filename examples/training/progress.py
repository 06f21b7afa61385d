"""Progress of long loops: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from .distributed import is_main, no_progress_bar

T = TypeVar("T")

FIRST_LINE = 5.0  # seconds
LINE_EVERY = 30.0  # seconds


class Progress:
    """Counts steps. On a terminal tqdm's bar; elsewhere a line on stderr after ``FIRST_LINE``
    seconds, then every ``LINE_EVERY``, and one at the end; none in shorter loops. Only the main
    process writes.

        mask_r_cnn: 40 of 800, loss 1.873, 5 s, 95 s left
        mask_r_cnn: 280 of 800, loss 0.934, 35 s, 65 s left
    """

    def __init__(self, description: str, total: int, *, initial: int = 0, unit: str = "it"):
        self.description = description
        self.total = total
        self.done = self.initial = initial
        self.note = ""
        self.bar = tqdm(
            desc=description, total=total, initial=initial, unit=unit, disable=no_progress_bar()
        )
        self.writes_lines = bool(self.bar.disable) and is_main()
        self.start = time.perf_counter()
        self.next_line = FIRST_LINE

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()
        if kind is None and self.writes_lines and self.seconds() >= FIRST_LINE:
            self._write_line()

    def update(self, note: str | None = None) -> None:
        """Count one step. ``note`` is shown from now on."""
        self.done += 1
        if note is not None:
            self.note = note
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update()
        if self.writes_lines and self.seconds() >= self.next_line and self.done < self.total:
            self.next_line = self.seconds() + LINE_EVERY
            self._write_line()

    def seconds(self) -> float:
        """Seconds since this object was created."""
        return time.perf_counter() - self.start

    def _write_line(self) -> None:
        seconds = self.seconds()
        parts = [f"{self.done} of {self.total}", self.note, duration(seconds)]
        if self.done < self.total:
            left = seconds / (self.done - self.initial) * (self.total - self.done)
            parts.append(f"{duration(left)} left")
        line = ", ".join(part for part in parts if part)
        print(f"{self.description}: {line}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """In seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def track(items: Iterable[T], description: str, total: int, *, unit: str = "it") -> Iterator[T]:
    """The ``total`` items, with their progress."""
    with Progress(description, total, unit=unit) as progress:
        for item in items:
            yield item
            progress.update()
