"""Nothing is sent or fetched at run time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import shape_roi_align

PACKAGE = Path(shape_roi_align.__file__).parent

FORBID = """
import sys

def forbid(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(f"forbidden: {event}")

sys.addaudithook(forbid)
"""
USE = """
import torch
import shape_roi_align
import shape_roi_align.__main__
import shape_roi_align.reference
import shape_roi_align.visualize
pool = shape_roi_align.MultiScaleSaRoIAlign(["0", "1"], 7, 2)
features = {"0": torch.ones(1, 4, 32, 32, requires_grad=True), "1": torch.ones(1, 4, 16, 16)}
maps = torch.rand(1, 28, 28, requires_grad=True)
pool(features, [torch.tensor([[1.0, 2, 90, 100]])], maps, [(128, 128)]).sum().backward()
raise SystemExit(shape_roi_align.__main__.main(["--check"]))
"""

NAMES = {"getaddrinfo", "gethostbyname", "inet_addr", "inet_aton", "inet_pton"}
SOCKETS = {"socket", "connect", "bind", "listen", "sendto", "send"}  # the CUDA runtime has them too


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.slow
def test_import_calls_gradients_and_the_report_open_no_socket() -> None:
    done = run(FORBID + USE)
    assert done.returncode == 0, done.stderr


def test_an_opened_socket_is_noticed() -> None:
    done = run(FORBID + "import socket\nsocket.socket()")
    assert "forbidden: socket.__new__" in done.stderr


@pytest.mark.parametrize("library", sorted(PACKAGE.glob("*.so")), ids=lambda path: path.name)
def test_no_binary_calls_the_network(library: Path) -> None:
    command = ["nm", "--dynamic", "--undefined-only", str(library)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    imported = set(re.findall(r" U (\w+)", listing))
    assert "memcpy" in imported or "memmove" in imported
    calls = NAMES if "cuda" in library.name else NAMES | SOCKETS
    assert not imported & calls
