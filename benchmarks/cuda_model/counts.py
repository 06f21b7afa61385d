"""Work of the kernels whose blocks serve boxes; the time that follows from a kernel's work."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cases import Case
from cuda_model.boxes import SECTOR, Box, Integers, boxes_of, pixels_read
from cuda_model.kernels import (
    CHANNELS_PER_LANE,
    CHANNELS_PER_WARP,
    NOW,
    TEAM,
    THREADS,
    WARP,
    WARPS,
    BoxGrid,
    Design,
    PatchPlan,
    ceil_div,
    channels_per_slab,
    make_box_grid,
    plan_patches,
    reads_channels_in_lanes,
    taps_in_flight,
    vector_width,
    wanted_in_forward,
)
from cuda_model.machine import (
    CAPABILITIES,
    H100,
    STEPS,
    Footprint,
    Machine,
    clocks,
    read_baseline,
    resident_blocks,
)

Floats = NDArray[np.float64]
TYPES = {4: "float", 2: "__half"}


@dataclass
class Work:
    """What one launch does."""

    kernel: str  # as in scripts/ptxas_baseline.tsv
    blocks: Floats  # clocks of each block, if it never waits for another
    instructions: float  # of all warps
    first_level: float = 0  # bytes
    second_level: float = 0
    device: float = 0
    counts: dict[str, float] = field(default_factory=dict)  # for the page
    launches: int = 1
    resident: int | None = None  # blocks per multiprocessor; else from the baseline

    def limits(self, machine: Machine = H100) -> dict[str, float]:
        """Seconds that each resource needs."""
        resident = self.resident or resident_on_h100(self.kernel)
        slots = machine.multiprocessors * resident
        return {
            "device memory": self.device / machine.device_bandwidth,
            "second level": self.second_level / machine.second_level_bandwidth,
            "first level": self.first_level
            / (machine.first_level_bytes * machine.multiprocessors * machine.clock),
            "instructions": self.instructions
            / (machine.instructions * machine.multiprocessors * machine.clock),
            "latency": float(self.blocks.sum()) / slots / machine.clock,
            "longest block": float(self.blocks.max(initial=0)) / machine.clock,
        }

    def seconds(self, machine: Machine = H100) -> float:
        return max(self.limits(machine).values()) + self.launches * machine.launch

    @property
    def bound_by(self) -> str:
        limits = self.limits()
        return max(limits, key=limits.__getitem__)


def resident_on_h100(kernel: str) -> int:
    footprint = read_baseline().get(("sm_90", kernel), Footprint(32, 0))
    capability = next(c for c in CAPABILITIES if c.name == "9.0")
    return resident_blocks(footprint, capability, THREADS)


class Tally:
    """Steps of one block: those on its longest path, and those of all its warps."""

    def __init__(self) -> None:
        self.clocks = 0.0
        self.instructions = 0.0

    def add(self, name: str, serial: float, by_warps: float | None = None) -> None:
        """serial: steps one after another; by_warps: of all warps, else of one."""
        step = STEPS[name]
        self.clocks += serial * step.clocks
        self.instructions += (serial if by_warps is None else by_warps) * step.instructions

    def passes(self, name: str, items: int) -> None:
        """`items` dealt to the threads of the block."""
        self.add(name, ceil_div(items, THREADS), ceil_div(items, WARP))


def plan_of(box: Box, grid: BoxGrid) -> PatchPlan:
    return plan_patches(
        (box.y.most_touched, box.x.most_touched),
        (box.y.samples, box.x.samples),
        (box.y.bins, box.x.bins),
        grid.max_bins,
    )


@dataclass(frozen=True)
class Patch:
    """The bins of one patch: taps of each, row by row."""

    taps: Integers
    samples: int
    plan: PatchPlan

    @property
    def slots(self) -> int:
        return len(self.taps) * self.plan.taps_per_bin


def patches_of(box: Box, grid: BoxGrid, share: int) -> list[Patch]:
    """PatchGroups: of the groups that a share of the box has."""
    plan = plan_of(box, grid)
    y, x = box.y.taps_of_bins(), box.x.taps_of_bins()
    corners = [
        (row, column)
        for row in range(0, len(y), plan.bin_rows)
        for column in range(0, len(x), plan.bin_columns)
    ]
    patches = []
    for row, column in corners[share :: grid.shares]:
        rows, columns = y[row : row + plan.bin_rows], x[column : column + plan.bin_columns]
        samples = len(rows) * box.y.samples * len(columns) * box.x.samples
        patches.append(Patch(np.outer(rows, columns).ravel(), samples, plan))
    return patches


def add_tables(tally: Tally, patch: Patch) -> None:
    """fill_tables"""
    tally.add("patch", 1, WARPS)
    tally.add("samples", 1, 2)
    tally.add("touched", 1, 2)
    tally.passes("map", patch.samples)
    tally.add("readers", 1, 2)


def by_warp(steps: Integers) -> Integers:
    """Steps of each warp where bins are dealt to warps in turn."""
    padded = np.zeros(ceil_div(len(steps), WARPS) * WARPS, np.int64)
    padded[: len(steps)] = steps
    return padded.reshape(-1, WARPS).sum(axis=0)


def add_channels_in_lanes(tally: Tally, patch: Patch, in_flight: int) -> None:
    """add_taps of forward_channels_in_lanes_kernel: a warp serves a bin, or a part of one."""
    step, rest = ("channels", "last") if in_flight == 2 else ("channels of four", "last of three")
    if patch.plan.has_many_taps:
        per_warp = ceil_div(int(patch.taps.max(initial=0)), WARPS)
        steps = ceil_div(per_warp, in_flight)
        tally.add("bin", 1, WARPS)
        tally.add(step, steps, WARPS * steps)
        tally.add("warps", 1, WARPS)
        return
    whole, odd = by_warp(patch.taps // in_flight), by_warp((patch.taps % in_flight > 0).astype(int))
    bins = by_warp(np.ones_like(patch.taps))
    longest = int(np.argmax(whole * clocks(step) + odd * clocks(rest)))
    tally.add("bin", bins[longest], len(patch.taps))
    tally.add(step, whole[longest], whole.sum())
    tally.add(rest, odd[longest], odd.sum())


def add_bins_in_lanes(tally: Tally, patch: Patch, channels: int) -> None:
    """pool of forward_bins_in_lanes_kernel: lanes serve the taps of a few bins."""
    lanes = WARP if patch.plan.taps_per_bin > WARP else TEAM
    teams = WARP // lanes
    groups = ceil_div(channels, CHANNELS_PER_LANE)
    serial = ceil_div(groups, WARPS)
    per_warp = ceil_div(len(patch.taps), max(1, WARPS // groups))  # bins_of_warp
    longest: dict[str, int] = {}
    for begin in range(0, len(patch.taps), per_warp):
        part = patch.taps[begin : begin + per_warp]
        taps = np.zeros(ceil_div(len(part), teams) * teams, np.int64)
        taps[: len(part)] = part
        steps = -(-taps.reshape(-1, teams).max(axis=1) // lanes)
        chunks = ceil_div(len(part), WARP)
        counts = {"team": len(steps), "pixels": int(steps.sum()), "write": chunks}
        for name, count in counts.items():
            tally.add(name, 0, groups * count)
            longest[name] = max(longest.get(name, 0), count)
    for name, count in longest.items():
        tally.add(name, serial * count, 0)


def forward(case: Case, channels_last: bool, element_size: int, design: Design = NOW) -> Work:
    """forward: the launch that it makes."""
    channels_in_lanes = reads_channels_in_lanes(case.channels, channels_last)
    bins = case.output_size**2
    pixels = case.num_images * sum(height * width for height, width, _ in case.levels)
    wanted = wanted_in_forward(bins)
    slab = (
        CHANNELS_PER_WARP
        if channels_in_lanes
        else channels_per_slab(case.num_rois, case.channels, pixels, element_size, wanted)
    )
    grid = make_box_grid(case.num_rois, case.channels, slab, bins, wanted)
    type_ = TYPES[element_size]
    width = vector_width(case.channels, element_size)
    in_flight = taps_in_flight(element_size, width)
    name = (
        f"forward_channels_in_lanes_kernel<{type_}, float, {width}>"
        if channels_in_lanes
        else f"forward_bins_in_lanes_kernel<{type_}, float>"
    )
    blocks: list[float] = []
    instructions = taps = near = patch_count = 0.0
    for box in boxes_of(case):
        for share in range(grid.shares):
            for first in range(0, case.channels, grid.slab_channels):
                channels = min(grid.slab_channels, case.channels - first)
                tally = Tally()
                add_plan(tally, design)
                for patch in patches_of(box, grid, share):
                    add_tables(tally, patch)
                    tally.passes("tap", patch.slots)
                    taps += float(patch.taps.sum()) * channels
                    patch_count += 1
                    if channels_in_lanes:
                        add_channels_in_lanes(tally, patch, in_flight)
                    else:
                        add_bins_in_lanes(tally, patch, channels)
                blocks.append(tally.clocks)
                instructions += tally.instructions
        if channels_in_lanes:
            pixels_of_box = len(box.y.touched()) * len(box.x.touched())
            near += pixels_of_box * case.channels * element_size
        else:
            near += box.sectors(element_size) * case.channels * SECTOR
    output = case.num_rois * case.channels * bins * element_size
    return Work(
        name,
        np.array(blocks),
        instructions,
        first_level=taps * element_size,
        second_level=near + output,
        device=pixels_read(case) * case.channels * element_size + output + map_bytes(case),
        counts={"patches": patch_count, "taps": taps / case.channels, "shares": grid.shares},
    )


def add_plan(tally: Tally, design: Design) -> None:
    """load_box"""
    tally.add("plan" if design.planned_by_lanes else "plan by one", 1)


def passes_over(name: str, *bytes_: float) -> Work:
    """A kernel of torch that reads and writes memory in order: a copy, zeros, a sum."""
    total = float(sum(bytes_))
    return Work(name, np.zeros(0), 0.0, second_level=total, device=total)


def map_bytes(case: Case) -> int:
    return case.num_rois * case.map_size**2 * 4


def map_and_box_gradient(
    case: Case, channels_last: bool, element_size: int, design: Design = NOW
) -> Work:
    """map_and_box_gradient: the launch that it makes."""
    channels_in_lanes = reads_channels_in_lanes(case.channels, channels_last)
    bins = case.output_size**2
    grid = make_box_grid(case.num_rois, case.channels, case.channels, bins)
    slabs = ceil_div(case.channels, CHANNELS_PER_WARP)
    width = vector_width(case.channels, element_size) if channels_in_lanes else 0
    blocks: list[float] = []
    instructions = taps = near = reads = 0.0
    for box in boxes_of(case):
        for share in range(grid.shares):
            tally = Tally()
            add_plan(tally, design)
            for patch in patches_of(box, grid, share):
                add_tables(tally, patch)
                tally.passes("offsets", patch.slots)
                eights = -(-patch.taps // CHANNELS_PER_LANE)
                if not channels_in_lanes:
                    passes = ceil_div(patch.slots, THREADS)
                    per_pass = ceil_div(case.channels, CHANNELS_PER_LANE)
                    warps = ceil_div(patch.slots, WARP)
                    tally.add("product", passes * per_pass, warps * per_pass)
                else:
                    longest = (
                        ceil_div(int(eights.max(initial=0)), WARPS)
                        if patch.plan.has_many_taps
                        else int(by_warp(eights).max())
                    )
                    tally.add("products", longest, float(eights.sum()))
                    slab = "slab together" if design.taps_in_flight else "slab"
                    tally.add(slab, longest * slabs, float(eights.sum()) * slabs)
                tally.passes("sample", patch.samples)
                cells = case.map_size**2 * len(patch.taps) / bins
                tally.passes("cell", int(np.ceil(cells)))
                taps += float(patch.taps.sum())
                reads += float(eights.sum()) if channels_in_lanes else float(patch.taps.sum())
            tally.add("block sum", 1, WARPS)
            blocks.append(tally.clocks)
            instructions += tally.instructions
        if channels_in_lanes:
            pixels = len(box.y.touched()) * len(box.x.touched())
            near += pixels * case.channels * element_size
        else:
            near += box.sectors(element_size) * case.channels * SECTOR
    grad = case.num_rois * case.channels * bins * element_size
    features = pixels_read(case) * case.channels * element_size
    return Work(
        f"map_and_box_gradient_kernel<{TYPES[element_size]}, float, {width}>",
        np.array(blocks),
        instructions,
        first_level=(taps + reads) * case.channels * element_size,
        second_level=near + grad,
        device=features + grad + 2 * map_bytes(case),
        counts={"taps": taps, "shares": grid.shares},
    )
