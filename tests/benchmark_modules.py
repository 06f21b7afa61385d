"""The modules of benchmarks/. Some have the same names as modules here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@contextmanager
def import_benchmarks(*names: str) -> Iterator[SimpleNamespace]:
    """A namespace of the modules `names`; package.module is named module."""
    before = dict(sys.modules)
    for path in BENCHMARKS.glob("*"):
        sys.modules.pop(path.stem, None)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        modules = {name.rpartition(".")[2]: importlib.import_module(name) for name in names}
        yield SimpleNamespace(**modules)
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name, module in list(sys.modules.items()):
            if str(BENCHMARKS) in str(getattr(module, "__file__", "")):
                del sys.modules[name]
        sys.modules.update({name: before[name] for name in before if name not in sys.modules})
