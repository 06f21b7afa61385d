"""benchmarks/cuda_prediction.md, from the counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cases import Case
from cuda_model.calls import backward, seconds
from cuda_model.comparisons import box_designs, former_rows, gather_designs, out_of_reach
from cuda_model.counts import Work, forward, map_and_box_gradient
from cuda_model.kernels import THREADS
from cuda_model.machine import (
    CAPABILITIES,
    H100,
    INSTRUCTION,
    STEPS,
    WAIT,
    blocks_by,
    read_baseline,
)
from cuda_model.text import (
    ALL,
    FLOAT16,
    FLOAT32,
    LAYOUTS,
    megabytes,
    microseconds,
    number,
    paragraph,
    table,
)
from cuda_model.tiles import gather_feature_gradient, tile_tally

PAGE = Path(__file__).resolve().parents[1] / "cuda_prediction.md"
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


def machine_text() -> str:
    waits = ", ".join(f"{name} {clocks}" for name, clocks in WAIT.items())
    return paragraph(
        f"Assumed of an H100: {H100.multiprocessors} multiprocessors at {H100.clock / 1e9:.1f} "
        f"GHz, each {H100.instructions} warps' instructions and {H100.first_level_bytes} bytes of "
        f"the first level per clock; second level {H100.second_level_bandwidth / 1e12:.1f} TB/s, "
        f"device memory {H100.device_bandwidth / 1e12:.2f} TB/s (80 % of 3.35); "
        f"{H100.launch * 1e6:.0f} us per launch; {INSTRUCTION} clocks from one instruction of a "
        f"warp to the next. Clocks that a warp waits for: {waits}."
    )


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
            by = [name[0] for name, blocks in limits.items() if blocks == least]
            cells.append(f"{least} {', '.join(by)}")
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


def three_limits(work: Work) -> str:
    of = work.limits()
    return " / ".join(microseconds(of[of_]) for of_ in ("instructions", "latency", "longest block"))


def forward_rows(chosen: Sequence[Case]) -> list[str]:
    rows = []
    for case in chosen:
        row = [case.name]
        for channels_last in LAYOUTS.values():
            work = forward(case, channels_last, FLOAT32)
            half = forward(case, channels_last, FLOAT16)
            if channels_last:
                row.append(number(work.counts["taps"] / case.num_rois))
            row += [
                number(len(work.blocks)),
                limits(work)[0],
                three_limits(work),
                f"**{microseconds(work.seconds())}** {work.bound_by}",
                microseconds(half.seconds()),
            ]
        rows.append(row)
    columns = ("blocks", "MB", "instructions / latency / longest", "time, bound by", "float16")
    heads = [f"{layout}: {column}" for layout in LAYOUTS for column in columns]
    return table(["forward", "taps per box", *heads], rows)


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


def render(names: Sequence[str] = PREDICTED) -> str:
    """The page; with fewer names, that part of it."""
    chosen = [ALL[name] for name in names]
    return TEXT.format(
        machine=machine_text(),
        out_of_reach="\n".join(out_of_reach()),
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

Of 256 threads, by r(egisters), s(hared memory, plus the driver's 1 KB per block) or t(hreads), with
the figures of each architecture in `scripts/ptxas_baseline.tsv`. 8.6 and 8.9 run the code of 8.0.

{occupancy}

## Forward, float32

*Taps* are (bin, pixel) pairs, each once. MB: first / second level / device.

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

Former kernels weighed all taps of a pixel and a box by one thread, planned a box by one thread, had
tiles of one size that counted the boxes of empty tiles, and bits for few boxes too. Same model.

{former}

What single choices do, and what is not built:

{gather_designs}

{box_designs}

Wanted, and out of reach by these counts:

{out_of_reach}

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
