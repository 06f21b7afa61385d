"""Assumptions: the machines, latencies, and instructions of the kernels' loops."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

BASELINE = Path(__file__).resolve().parents[2] / "scripts" / "ptxas_baseline.tsv"


@dataclass(frozen=True)
class Machine:
    """From data sheets, except the fractions."""

    name: str = "H100"
    multiprocessors: int = 132
    clock: float = 1.7e9  # Hz
    device_bandwidth: float = 0.8 * 3.35e12  # bytes per second; 80 % are reached
    second_level_bandwidth: float = 5.5e12
    first_level_bytes: int = 128  # per clock and multiprocessor
    instructions: int = 4  # of warps, per clock and multiprocessor
    launch: float = 2e-6  # seconds, of each kernel


H100 = Machine()

# Clocks from one instruction of a warp to the next that depends on it. INSTRUCTION is an average
# over instructions on which the next depends and on which it does not.
INSTRUCTION = 3
WAIT = {"shared": 30, "first": 40, "second": 270, "device": 600, "shuffle": 25, "barrier": 30}


@dataclass(frozen=True)
class Step:
    """One pass through a piece of a kernel by one warp."""

    what: str
    instructions: int  # executed, in the SASS of sm_90 for float32
    shared: int = 0  # accesses that the warp waits for, by level
    first: int = 0
    second: int = 0
    device: int = 0
    shuffle: int = 0
    barrier: int = 0

    @property
    def clocks(self) -> int:
        waits = sum(getattr(self, kind) * clocks for kind, clocks in WAIT.items())
        return INSTRUCTION * self.instructions + waits


STEPS = {
    # patch.cuh, forward
    "plan": Step(
        "block start; a box is read and planned, an axis per lane",
        420,
        device=1,
        shared=2,
        shuffle=3,
        barrier=1,
    ),
    "plan by one": Step("the same by one thread", 750, device=2, barrier=1),
    "patch": Step("a patch is found", 100),
    "samples": Step("coordinates of samples", 160, barrier=1),
    "touched": Step("rows and columns that bins touch", 90, shared=4),
    "map": Step("map value of a sample: four loads at once", 110, shared=2, second=1),
    "readers": Step("samples that read a tap", 170, shared=8, barrier=2),
    "tap": Step("weight of a tap from the tables", 250, shared=12),
    "bin": Step("a bin begins and ends", 100, shared=2),
    "channels": Step("two taps of 256 channels", 44, shared=1, second=1),
    "last": Step("the odd tap of a bin", 23, shared=1, second=1),
    "channels of four": Step("four taps of 256 channels of 2 bytes", 100, shared=1, second=1),
    "last of three": Step("the last of them, up to three", 90, shared=1, second=1),
    "warps": Step("sums of eight warps added", 80, shared=8, barrier=3),
    "team": Step("four bins, or one of many taps: shuffles, staging", 97, shuffle=9, shared=1),
    "pixels": Step("a tap per lane, 8 channels", 56, shared=1, second=1),
    "write": Step("32 bins of 8 channels are written", 220, shared=8),
    # map_and_box_gradient.cuh
    "offsets": Step("offsets of taps", 143, shared=6, barrier=1),
    "products": Step("eight taps begin and end", 155, shuffle=9, shared=2),
    "slab": Step("eight taps of 256 channels", 222, shared=8, second=2),
    "slab together": Step("the same, all taps before their use", 222, shared=8, second=1),
    "product": Step("a tap per thread, 8 channels", 66, second=1),
    "sample": Step("gradients of a sample", 281, shared=12, barrier=1),
    "cell": Step("a cell of the probability map collects", 320, shared=16, second=1, barrier=1),
    "block sum": Step(
        "gradient of the box: a sum over the block", 400, shuffle=5, shared=8, barrier=3
    ),
    # tiles.cuh, pixel_taps.cuh, feature_gradient.cuh
    "box": Step("a warp reads a box", 315, device=2),
    "tile rows": Step("which of 32 tile rows a box reads", 270),
    "tile columns": Step("which of 32 tile columns, and their bits", 650),
    "tile": Step("block start", 200),
    "bits": Step("a tile's bits of 1024 boxes", 30, second=1),
    "look": Step("a tile and the edges of 32 boxes", 150, second=1, first=2, barrier=1),
    "list": Step("boxes of a tile are listed", 230, shared=1, second=2, shuffle=12, barrier=2),
    "batch": Step(
        "boxes in hand, taps of pixels counted", 160, shared=4, second=1, shuffle=8, barrier=3
    ),
    "make": Step("boxes in hand are made, not loaded", 220, first=1, shuffle=1),
    "lines": Step("bins that read a row, or a column", 480, shared=8),
    "round": Step("taps of a batch: begin and end", 110, shared=4, shuffle=6, barrier=2),
    "pixel tap": Step("a tap is found, begins and ends", 220, shared=6, shuffle=6),
    "search": Step("half of the remaining samples of a bin", 36),
    "row weight": Step("weight of a sample row", 75),
    "row in map": Step("a sample row in the probability map", 75),
    "column weight": Step("weight of a sample column", 55),
    "sample value": Step("map value of a sample: four loads at once", 80, first=1),
    "step": Step("four taps of a warp's pixels, 256 channels", 100, shared=1, second=1),
    "step of eight": Step("eight taps, 256 channels of 2 bytes", 245, shared=1, second=1),
    "step of one": Step("eight taps, 32 channels", 125, shared=1, second=1),
    "store": Step("pixels are written, columns or channels innermost", 85),
}


def clocks(name: str) -> int:
    return STEPS[name].clocks


@dataclass(frozen=True)
class Capability:
    name: str
    architecture: str  # whose code it runs
    shared: int  # bytes per multiprocessor
    warps: int
    blocks: int


KB = 1024
CAPABILITIES = (
    Capability("8.0", "sm_80", 164 * KB, 64, 32),
    Capability("8.6, 8.9", "sm_80", 100 * KB, 48, 16),
    Capability("9.0", "sm_90", 228 * KB, 64, 32),
    Capability("10.0", "sm_100", 228 * KB, 64, 32),
    Capability("12.0", "sm_120", 100 * KB, 48, 24),
)
REGISTERS = 65536  # per multiprocessor
RESERVED_SHARED = 1 * KB  # per block, of the driver


@dataclass(frozen=True)
class Footprint:
    registers: int
    shared: int


def read_baseline() -> dict[tuple[str, str], Footprint]:
    """(architecture, kernel<types>) -> what scripts/ptxas_report.py recorded."""
    with BASELINE.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {
        (row["architecture"], row["name"].rsplit("::", 1)[-1]): Footprint(
            int(row["registers"]), int(row["shared"])
        )
        for row in rows
    }


def blocks_by(footprint: Footprint, capability: Capability, threads: int) -> dict[str, int]:
    """Blocks per multiprocessor that each resource allows."""
    warps = threads // 32
    per_warp = -(-footprint.registers * 32 // 256) * 256
    shared = footprint.shared + RESERVED_SHARED
    return {
        "registers": REGISTERS // per_warp // warps,
        "shared memory": capability.shared // shared,
        "threads": min(capability.warps // warps, capability.blocks),
    }


def resident_blocks(footprint: Footprint, capability: Capability, threads: int) -> int:
    return min(blocks_by(footprint, capability, threads).values())
