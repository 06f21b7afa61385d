"""benchmarks/cuda_prediction.md, from the counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import cases
from cases import Case
from cuda_model.calls import backward, seconds
from cuda_model.counts import Work, forward, map_and_box_gradient
from cuda_model.kernels import NOW, THREADS, Design
from cuda_model.machine import (
    CAPABILITIES,
    H100,
    INSTRUCTION,
    STEPS,
    WAIT,
    blocks_by,
    read_baseline,
)
from cuda_model.tiles import gather_feature_gradient, tile_tally

PAGE = Path(__file__).resolve().parents[1] / "cuda_prediction.md"
ALL = {case.name: case for case in [*cases.SINGLE_LEVEL, *cases.MULTI_SCALE]}
PREDICTED = (
    "p2_1000_boxes_7x7",
    "p2_7x7",
    "p3_7x7",
    "c4",
    "refine_training",
    "ten_boxes",
    "one_box",
    "channels_3",
    "one_small_map",
    "large_map",
)
LAYOUTS = {"channels_last": True, "contiguous": False}
FLOAT32, FLOAT16 = 4, 2


def number(value: float) -> str:
    """Two significant digits at least."""
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def microseconds(value: float) -> str:
    return number(value * 1e6)


def megabytes(value: float) -> str:
    return number(value / 1e6)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def machine_rows() -> list[str]:
    waits = [
        f"wait for: {name}" for name in ("shared memory", "the first level", "the second level")
    ]
    waits += ["wait for: device memory", "wait for: a shuffle", "wait for: a barrier"]
    rows = [
        ("multiprocessors, clock", f"{H100.multiprocessors}, {H100.clock / 1e9:.1f} GHz"),
        ("device memory", f"{H100.device_bandwidth / 1e12:.2f} TB/s (80 % of 3.35)"),
        ("second-level cache", f"{H100.second_level_bandwidth / 1e12:.1f} TB/s"),
        ("first level", f"{H100.first_level_bytes} bytes per clock and multiprocessor"),
        ("instructions", f"{H100.instructions} warps' per clock and multiprocessor"),
        ("an instruction of one warp", f"{INSTRUCTION} clocks until the next"),
        *((name, f"{wait} clocks") for name, wait in zip(waits, WAIT.values(), strict=True)),
        ("a launch", f"{H100.launch * 1e6:.0f} us"),
    ]
    return table(("assumption", "H100"), rows)


def occupancy_rows() -> list[str]:
    baseline = read_baseline()
    rows = []
    for kernel in (
        "forward_channels_in_lanes_kernel<float, float, 4>",
        "forward_bins_in_lanes_kernel<float, float>",
        "gather_feature_gradient_kernel<float, float, 4, 8, 4>",
        "gather_feature_gradient_kernel<float, float, 4, 8, 1>",
        "gather_feature_gradient_kernel<float, float, 1, 1, 4>",
        "map_and_box_gradient_kernel<float, float, 4>",
        "touched_tiles_kernel<float>",
        "gather_feature_gradient_kernel<double, double, 2, 8, 4>",
    ):
        cells = []
        for capability in CAPABILITIES:
            footprint = baseline[capability.architecture, kernel]
            limits = blocks_by(footprint, capability, THREADS)
            least = min(limits.values())
            by = " and ".join(name for name, blocks in limits.items() if blocks == least)
            cells.append(f"{least} ({by})")
        shared = baseline["sm_90", kernel].shared / 1024
        rows.append([f"`{kernel}`", f"{shared:.1f}", *cells])
    head = ["kernel", "shared, KB", *(capability.name for capability in CAPABILITIES)]
    return table(head, rows)


def limits(work: Work) -> list[str]:
    of = work.limits()
    return [
        " / ".join(megabytes(n) for n in (work.first_level, work.second_level, work.device)),
        microseconds(of["instructions"]),
        microseconds(of["latency"]),
        microseconds(of["longest block"]),
        f"**{microseconds(work.seconds())}**",
        work.bound_by,
    ]


LIMITS = (
    "MB: first / second level / device",
    "instructions",
    "latency",
    "longest block",
    "time",
    "bound by",
)


def forward_rows(chosen: Sequence[Case]) -> list[str]:
    rows = []
    for case in chosen:
        for layout, channels_last in LAYOUTS.items():
            work = forward(case, channels_last, FLOAT32)
            half = forward(case, channels_last, FLOAT16)
            rows.append(
                [
                    f"{case.name}, {layout}",
                    number(len(work.blocks)),
                    number(work.counts["taps"] / case.num_rois),
                    *limits(work),
                    microseconds(half.seconds()),
                ]
            )
    return table(["case", "blocks", "taps per box", *LIMITS, "float16"], rows)


def gather_rows(chosen: Sequence[Case]) -> list[str]:
    rows = []
    for case in chosen:
        work, contiguous = (
            gather_feature_gradient(case, channels_last, FLOAT32) for channels_last in (True, False)
        )
        half = gather_feature_gradient(case, True, FLOAT16)
        count = work.counts
        of_longest = [number(count[f"longest {name}"]) for name in ("batches", "steps", "taps")]
        rows.append(
            [
                case.name,
                number(len(work.blocks)),
                number(count["tile"]),
                f"{100 * count['empty'] / count['tiles']:.0f} %",
                number(count["batches"]),
                " / ".join(of_longest),
                f"{100 * count['balance']:.0f} %",
                *limits(work),
                microseconds(contiguous.seconds()),
                microseconds(half.seconds()),
            ]
        )
    head = [
        "case",
        "blocks",
        "pixels",
        "empty",
        "batches",
        "of the longest",
        "balance",
        *LIMITS,
        "contiguous",
        "float16",
    ]
    return table(head, rows)


def map_rows(chosen: Sequence[Case]) -> list[str]:
    rows = []
    for case in chosen:
        work, contiguous = (
            map_and_box_gradient(case, channels_last, FLOAT32) for channels_last in (True, False)
        )
        both = [backward(case, channels_last, FLOAT32) for channels_last in (True, False)]
        rows.append(
            [
                case.name,
                number(len(work.blocks)),
                *limits(work),
                microseconds(contiguous.seconds()),
                " / ".join(number(sum(w.launches for w in works)) for works in both),
                " / ".join(microseconds(seconds(works)) for works in both),
            ]
        )
    head = ["case", "blocks", *LIMITS, "contiguous", "backward: launches", "backward: time"]
    return table(head, rows)


@dataclass(frozen=True)
class Proposal:
    text: str
    design: Design


GATHER_DESIGNS = (
    Proposal("as it is", NOW),
    Proposal("without small tiles", replace(NOW, small_tiles=False)),
    Proposal("without one channel per lane", replace(NOW, channel_per_lane=False)),
)
GATHER_CASES = ("one_small_map", "c4", "ten_boxes", "channels_3")
BOX_DESIGNS = (
    Proposal("as it is", NOW),
    Proposal("a box is planned by several lanes", replace(NOW, planned_by_lanes=True)),
    Proposal("gradient: all taps of a step in flight", replace(NOW, taps_in_flight=True)),
)
BOX_CASES = {
    "p3_7x7": True,
    "p2_7x7": True,
    "one_box": True,
    "ten_boxes": False,
    "channels_3": False,
}


def gather_designs(chosen: Sequence[Case]) -> list[str]:
    columns = [case for case in chosen if case.name in GATHER_CASES]
    rows = []
    for proposal in GATHER_DESIGNS:
        works = (gather_feature_gradient(c, True, FLOAT32, proposal.design) for c in columns)
        rows.append([proposal.text, *(microseconds(work.seconds()) for work in works)])
    return table(("gradient of the features", *(case.name for case in columns)), rows)


def box_designs(chosen: Sequence[Case]) -> list[str]:
    columns = [case for case in chosen if case.name in BOX_CASES]
    rows = []
    for proposal in BOX_DESIGNS:
        cells = [
            microseconds(f(case, BOX_CASES[case.name], FLOAT16, proposal.design).seconds())
            for case in columns
            for f in (forward, map_and_box_gradient)
        ]
        pairs = zip(cells[::2], cells[1::2], strict=True)
        rows.append([proposal.text, *(" / ".join(pair) for pair in pairs)])
    layouts = {True: "channels_last", False: "contiguous"}
    head = [f"{case.name}, {layouts[BOX_CASES[case.name]]}" for case in columns]
    return table(("forward / gradient of the maps, float16", *head), rows)


# Of the former kernels, by this model: microseconds. A case, kernel, channels_last, element size.
FORMER = {
    ("one_small_map", "gradient", True, FLOAT32): 2866,
    ("c4", "gradient", True, FLOAT32): 489,
    ("p2_7x7", "gradient", True, FLOAT32): 227,
    ("p3_7x7", "gradient", True, FLOAT32): 173,
    ("p3_7x7", "gradient", True, FLOAT16): 173,
    ("channels_3", "gradient", True, FLOAT32): 147,
    ("ten_boxes", "gradient", True, FLOAT32): 61,
    ("large_map", "gradient", True, FLOAT32): 1280,
    ("p2_1000_boxes_7x7", "forward", False, FLOAT32): 215,
    ("p3_7x7", "forward", False, FLOAT32): 86,
    ("c4", "forward", False, FLOAT32): 299,
    ("channels_3", "forward", False, FLOAT32): 27,
    ("p3_7x7", "forward", True, FLOAT16): 24,
}


def former_rows(chosen: Sequence[Case]) -> list[str]:
    names = {case.name for case in chosen}
    rows = []
    for (name, kernel, channels_last, element_size), former in FORMER.items():
        if name in names:
            f = forward if kernel == "forward" else gather_feature_gradient
            work = f(ALL[name], channels_last, element_size)
            layout = "channels_last" if channels_last else "contiguous"
            what = f"{kernel}, {name}, {layout}, float{8 * element_size}"
            rows.append([what, str(former), microseconds(work.seconds()), work.bound_by])
    return table(("kernel and case", "former", "now", "bound by"), rows)


def render(names: Sequence[str] = PREDICTED) -> str:
    """The page; with fewer names, that part of it."""
    chosen = [ALL[name] for name in names]
    return TEXT.format(
        machine="\n".join(machine_rows()),
        occupancy="\n".join(occupancy_rows()),
        forward="\n".join(forward_rows(chosen)),
        gather="\n".join(gather_rows(chosen)),
        maps="\n".join(map_rows(chosen)),
        former="\n".join(former_rows(chosen)),
        gather_designs="\n".join(gather_designs(chosen)),
        box_designs="\n".join(box_designs(chosen)),
        step=STEPS["step"].clocks,
        eight=STEPS["step of eight"].clocks,
        weight=full_tap(),
        empty=f"{tile_tally(np.zeros(0, np.int64), 1).clocks:.0f}",
    )


TEXT = """\
# What the CUDA kernels should take

**Nothing on this page was measured.** `python benchmarks/predict_cuda.py --write` generates it from
counts of work (`benchmarks/cuda_model/`) and from the assumptions below, so that a measurement has
something to refute. Times are microseconds on an H100. A time is one launch plus the largest of:

* bytes over bandwidth, for each level of memory;
* *instructions* of all warps over the issue rate;
* the *longest block*: its steps one after another, each of the warp that takes longest between two
  barriers, times the clocks of a step (`STEPS` in `benchmarks/cuda_model/machine.py`: executed
  instructions, read from the SASS of sm_90, plus waits);
* *latency*: the clocks of all blocks over the number of blocks that run at a time.

Not modelled: second touches that miss the second level, bank conflicts, slow paths of divisions,
the processor's part of a call, bins with more than 32 samples along an axis. `--case` prints more.

{machine}

## Blocks per multiprocessor

Of 256 threads, by registers (`scripts/ptxas_baseline.tsv`), shared memory (plus the driver's 1 KB
per block) and threads. 12.0 is given the registers of 10.0.

{occupancy}

## Forward, float32

*Taps* are (bin, pixel) pairs, each once.

{forward}

## Gradient of the features, float32, channels_last

A block serves a tile of 32 pixels and 256 channels, 16 boxes at a time (a *batch*); of 8 pixels,
32 boxes at a time, where there would be fewer than 1024 blocks. Of the longest block: batches /
steps / weights. *Weights* are taps that a thread weighs one after another, *steps* rounds of loads
of its busiest warp. *Balance*: the mean warp's steps over the busiest's. A step of four taps takes
{step} clocks, of eight taps of 2 bytes {eight}, a weight up to {weight} (2 x 2 samples, with a
map), an empty tile {empty}.

{gather}

## Gradient of the maps, float32, channels_last

The last two columns are the whole backward pass, channels_last / contiguous.

{maps}

## Predictions, before and after

Of kernels that gave the gradient's weights to threads by pixel and box, waited for shared memory
four times a step, counted an empty tile's boxes, had one size of tiles, and gave a warp all bins of
its channels. Their times are from the same model.

{former}

What single choices do, and what is not built:

{gather_designs}

{box_designs}

## What to look at first on a GPU

| ncu | kernel, case | the model is wrong where it is |
| --- | --- | --- |
| duration | gather_feature_gradient, one_small_map | below a half: weights are cheaper |
| smsp__inst_executed | gather_feature_gradient, p2_7x7 | off by a half: other lengths of steps |
| stall_barrier | gather_feature_gradient, c4 | below 30 % of the warps' stalls |
| lts__t_sectors_op_read * 32 | forward_bins_in_lanes, p2_1000_boxes_7x7 | above the bytes given |
| dram__bytes_read | forward_channels_in_lanes, p2_1000_boxes_7x7 | above twice the bytes given |
| local memory traffic | all | not 0 |
"""


def full_tap() -> int:
    """Clocks of a tap's weight where all 2 x 2 samples read the pixel."""
    counts = {
        "pixel tap": 1,
        "row weight": 2,
        "row in map": 2,
        "column weight": 4,
        "sample value": 4,
    }
    return sum(count * STEPS[name].clocks for name, count in counts.items())
