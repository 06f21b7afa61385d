"""Records of a training: a JSON object per line, and TensorBoard where it is installed."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from mrrcnn.files import named, write_text

from .distributed import is_main

log = logging.getLogger(__name__)


class MetricsWriter:
    """Writes in the main process only, each target only if its path is given.

    Lines that a full disk does not take are kept and written with the next ones.

    Args:
        file: appended to, a line per record.
        tensorboard: folder of event files; nothing is written if TensorBoard cannot be imported.
    """

    def __init__(self, file: Path | None = None, tensorboard: Path | None = None):
        self.file = file if is_main() else None
        self.waiting: list[str] = []
        self.board: Any = None
        if tensorboard is not None and is_main():
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self.board = SummaryWriter(str(tensorboard))

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._on_board("close")
        if kind is None:
            self.sync()

    def forget(self, phase: str, iteration: int) -> None:
        """Drop a phase's lines from ``iteration`` on: they are about to be written again.

        Raises:
            ValueError: a line is no record; the message names file and line.
        """
        if self.file is None or not self.file.exists():
            return
        lines = self.file.read_text(errors="replace").splitlines(keepends=True)
        whole = [x for x in lines if x.endswith("\n")]  # the last may be half written
        kept = []
        for number, line in enumerate(whole, 1):
            try:
                again = _is_from(json.loads(line), phase, iteration)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{self.file}, line {number}, must be a record: {error}"
                ) from error
            if not again:
                kept.append(line)
        write_text(self.file, "".join(kept))

    def add(self, record: dict[str, Any]) -> None:
        """``record`` holds a phase, an iteration and numbers."""
        if self.file is not None:
            self.waiting.append(json.dumps(record) + "\n")
            try:
                self._append(self.file)
            except OSError as error:
                log.warning("%s; %d records wait", error, len(self.waiting))
        for name, value in record.items():
            if name not in ("phase", "iteration"):
                tag = f"{record['phase']}/{name}"
                self._on_board("add_scalar", tag, value, record["iteration"])

    def sync(self) -> None:
        """Make every record durable. Required before a checkpoint, which does not repeat records.

        Raises:
            OSError: there is a record that the disk does not take; the message names the file.
        """
        if self.file is not None:
            self._append(self.file, durable=True)

    def _on_board(self, method: str, *arguments: Any) -> None:
        """Call TensorBoard's writer. Stop using it after a failure: it accepts nothing more."""
        if self.board is None:
            return
        try:
            getattr(self.board, method)(*arguments)
        except OSError as error:
            log.warning("TensorBoard gets no more records: %s", error)
            self.board = None

    def _append(self, path: Path, *, durable: bool = False) -> None:
        """Append the waiting lines, all or none."""
        lines = "".join(self.waiting).encode()
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                if file.write(lines) < len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if durable:
                    os.fsync(file.fileno())
            except OSError as error:
                file.truncate(size)
                raise named(error, path) from error
        self.waiting.clear()


def _is_from(record: dict[str, Any], phase: str, iteration: int) -> bool:
    return record["phase"] == phase and record["iteration"] >= iteration
