"""benchmarks/cuda_prediction.md, from the counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cases import Case
from cuda_model.calls import backward, gradient_of_maps, seconds
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
from cuda_model.measured import counter_rows, time_rows
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
        f"Assumptions about an H100: {H100.multiprocessors} multiprocessors at "
        f"{H100.clock / 1e9:.1f} GHz, each with {H100.instructions} warp instructions and "
        f"{H100.first_level_bytes} bytes of the first level per clock; second level "
        f"{H100.second_level_bandwidth / 1e12:.1f} TB/s, device memory "
        f"{H100.device_bandwidth / 1e12:.2f} TB/s (80 % of 3.35); {H100.launch * 1e6:.0f} us per "
        f"launch; {INSTRUCTION} clocks from one instruction of a warp to the next. Clocks that a "
        f"warp waits, by access: {waits}."
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
        work = map_and_box_gradient(case, True, FLOAT32)
        contiguous = gradient_of_maps(case, False, FLOAT32)
        both = [backward(case, channels_last, FLOAT32) for channels_last in (True, False)]
        rows.append(
            [
                case.name,
                number(len(work.blocks)),
                *limits(work),
                microseconds(seconds(contiguous)),
                " / ".join(number(sum(w.launches for w in works)) for works in both),
                " / ".join(microseconds(seconds(works)) for works in both),
            ]
        )
    head = ["case", "blocks", *LIMITS, "contiguous", "backward: launches", "backward: time"]
    return table(head, rows)


def render(names: Sequence[str] = PREDICTED) -> str:
    """The page, with the cases ``names`` in its tables."""
    chosen = [ALL[name] for name in names]
    return TEXT.format(
        machine=machine_text(),
        out_of_reach="\n".join(out_of_reach()),
        occupancy="\n".join(occupancy_rows()),
        forward="\n".join(forward_rows(chosen)),
        gather="\n".join(gather_rows(chosen)),
        maps="\n".join(map_rows(chosen)),
        times="\n".join(time_rows(list(names))),
        counters="\n".join(counter_rows()),
        former="\n".join(former_rows(chosen)),
        gather_designs="\n".join(gather_designs(chosen)),
        box_designs="\n".join(box_designs(chosen)),
        step=STEPS["step"].clocks,
        eight=STEPS["step of eight"].clocks,
        weight=full_tap(),
        empty=f"{tile_tally(np.zeros(0, np.int64), 1).clocks:.0f}",
    )


TEXT = """\
# Predicted times of the CUDA kernels

**Only the section [Measured](#measured) was measured**, on an H200, which differs from an H100 in
its memory (4.2 TB/s copied). All other numbers were predicted before, for an H100.
`python benchmarks/predict_cuda.py --write` generates the page from operation counts
(`benchmarks/cuda_model/`), the assumptions below and the recorded rows. Times are microseconds.
*First* and *second level* are the L1 and L2 caches. The time of a kernel is one launch plus the
largest of:

* bytes divided by bandwidth, for each level of memory;
* *instructions* of all warps divided by the issue rate;
* *longest block*: the sum of the block's steps, in clocks (`STEPS` in
  `benchmarks/cuda_model/machine.py`: executed instructions, read from the SASS of sm_90, plus
  waits). Between two barriers, the slowest warp counts;
* *latency*: the clocks of all blocks divided by the number of blocks that run at a time.

Not modelled: repeated reads that miss the second level, bank conflicts, slow paths of divisions,
CPU time of a call, bins with more than 32 samples along an axis. `--case` prints more cases.

{machine}

## Blocks per multiprocessor

Number of blocks of 256 threads, and what limits it: r(egisters), s(hared memory, including the
driver's 1 KB per block) or t(hreads). `scripts/ptxas_baseline.tsv` has the registers and shared
memory of each architecture. 8.6 and 8.9 run the code of 8.0.

{occupancy}

## Forward, float32

*Taps* are distinct (bin, pixel) pairs. MB: first / second level / device.

{forward}

## Gradient of the features, float32, channels_last

A block processes a tile of 32 pixels and 256 channels, in *batches* of 16 boxes. If this gave fewer
than 1024 blocks, tiles have 8 pixels and batches 32 boxes. *Empty*: tiles that no box reads. *Of
the longest*: batches / steps / weights of the longest block. *Weights* are taps whose weights one
thread computes one after another. *Steps* are rounds of loads of the busiest warp. *Balance*: steps
of the mean warp divided by steps of the busiest warp. Clocks: a step of four taps {step}, a step of
eight taps of 2 bytes {eight}, a weight up to {weight} (2 x 2 samples, with a map), an empty tile
{empty}.

{gather}

## Gradient of the maps, float32, channels_last

The last two columns are for the whole backward pass, channels_last / contiguous.

{maps}

## Predictions, before and after

In the former kernels, one thread computed the weights of all taps of a pixel and a box, one thread
planned a box, all tiles had the same size, blocks of empty tiles counted boxes, and bit sets were
used for any number of boxes. The same model predicts both times.

{former}

Effect of single design choices, including choices that are not implemented:

{gather_designs}

{box_designs}

Targets that the kernels cannot reach according to these counts:

{out_of_reach}

## Measured

Microseconds of single kernels, without launches, from torch.profiler with a cold second level
(`scripts/kernel_times.py`; `results/recorded-kernels-cuda.jsonl`), and in parentheses the ratio:

{times}

Counters of `ncu` (`results/recorded-counters-cuda.jsonl`), predicted / measured:

{counters}

The counts of instructions are right within a tenth, except for boxes with bins in the lanes and for
tiles of few boxes. The waits were assumed too short: kernels take 1.2 to 2.9 times the predicted
time, the gradient of the features about twice. In it, warps wait for barriers 30 to 46 % of the
time, so fewer barriers, or more blocks at a time, would help most. Reading pixels (*long
scoreboard*) bounds the forward pass with channels in the lanes. With fewer than 100 boxes, the time
is that of the steps of one block.

Two predictions led to changes, whose effect was then measured. The gradients of maps read
copies of contiguous features: c4 479 to 144. This library's two copies, of features and of the
output's gradient, take 90; torch's copy of the gradient alone took 176. Boxes of 14 x 14 bins are
divided among twice as many blocks in the forward pass: c4 130 to 103. The same for 7 x 7 bins
would be slower (p3_7x7 52 to 59), and so would smaller tiles (p2_7x7 210 to 614).

Not measured: `one_small_map`, `large_map`, pyramids, types of 2 bytes kernel by kernel.
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
