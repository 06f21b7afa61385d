"""Records of a training: a JSON object per line, and TensorBoard where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from .distributed import is_main


class MetricsWriter:
    """Writes in the main process only, each target only if its path is given.

    Args:
        file: appended to, a line per record.
        tensorboard: folder of event files; nothing is written if TensorBoard cannot be imported.
    """

    def __init__(self, file: Path | None = None, tensorboard: Path | None = None):
        self.file = file if is_main() else None
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
        if self.board is not None:
            self.board.close()

    def forget(self, phase: str, iteration: int) -> None:
        """Drop a phase's lines from ``iteration`` on: they are about to be written again."""
        if self.file is None or not self.file.exists():
            return
        lines = self.file.read_text().splitlines(keepends=True)
        whole = [x for x in lines if x.endswith("\n")]  # the last may be half written
        kept = [x for x in whole if not _is_from(json.loads(x), phase, iteration)]
        part = self.file.with_name(self.file.name + ".part")
        part.write_text("".join(kept))
        part.replace(self.file)

    def add(self, record: dict[str, Any]) -> None:
        """``record`` holds a phase, an iteration and numbers."""
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps(record) + "\n")
        if self.board is not None:
            for name, value in record.items():
                if name not in ("phase", "iteration"):
                    self.board.add_scalar(f"{record['phase']}/{name}", value, record["iteration"])


def _is_from(record: dict[str, Any], phase: str, iteration: int) -> bool:
    return record["phase"] == phase and record["iteration"] >= iteration
