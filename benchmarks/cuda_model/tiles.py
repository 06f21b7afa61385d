"""Work of the kernels that make the gradient of the features: their blocks serve tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cases import Case
from cuda_model.boxes import Box, Integers, boxes_of
from cuda_model.counts import TYPES, Tally, Work
from cuda_model.kernels import (
    CONSTANTS,
    LISTED_BOXES,
    NOW,
    THREADS,
    WARP,
    WARPS,
    Design,
    Tiles,
    ceil_div,
    make_tiles,
)
from cuda_model.machine import STEPS, clocks


@dataclass(frozen=True)
class Lines:
    """Counts for the boxes of one image and level along one axis, padded to whole tiles: [boxes,
    tiles, rows or columns of a tile]."""

    bins: Integers  # that read a row or column
    reads: Integers  # samples that give it a weight
    span: Integers  # [boxes, tiles]: bins that read the tile
    samples: Integers  # [boxes], per bin

    @classmethod
    def make(cls, boxes: list[Box], axis: str, size: int, tile: int) -> Lines:
        tiles = ceil_div(size, tile)
        begin, end, reads = np.zeros((3, len(boxes), tiles * tile), np.int64)
        for k, box in enumerate(boxes):
            of_axis = getattr(box, axis)
            begin[k, :size], end[k, :size] = of_axis.bins_reading()
            reads[k, :size] = of_axis.samples_reading()
        shape = (len(boxes), tiles, tile)
        first = np.where(end > begin, begin, np.iinfo(np.int64).max).reshape(shape).min(axis=2)
        span = np.maximum(end.reshape(shape).max(axis=2) - first, 0)
        samples = np.array([getattr(box, axis).samples for box in boxes], np.int64)
        return cls((end - begin).reshape(shape), reads.reshape(shape), span, samples)

    def looked_at(self, k: Integers, bins: Integers, reads: Integers) -> Integers:
        """samples_reading, over the bins that read a row or column."""
        samples = self.samples[k, None]
        return np.where(samples <= CONSTANTS["kFewSamples"], bins * samples, reads)

    def searches(self, k: Integers) -> Integers:
        """Steps of samples_reading's two binary searches."""
        steps = 2 * np.ceil(np.log2(self.samples[k] + 1)).astype(np.int64)
        return np.where(self.samples[k] <= CONSTANTS["kFewSamples"], 0, steps)


@dataclass
class TileCounts:
    """Work on one tile's list of boxes."""

    batches: int
    rounds: int
    weights: float  # clocks: sum over rounds of turns times the clocks of the longest tap
    weight_taps: int  # sum over rounds of turns: taps whose weights one thread computes
    steps: int  # of the longest pixel of each round
    warp_steps: int  # likewise, of each warp's longest pixel, over all warps
    weight_instructions: float  # of all warps
    taps: int


def count_tile(
    y: Lines,
    x: Lines,
    k: Integers,
    i: int,
    j: int,
    has_map: bool,
    tiles: Tiles,
    taps_of_step: int = 1,
) -> TileCounts:
    """gather_feature_gradient_kernel on the boxes k that read tile (i, j)."""
    batch = tiles.batch
    boxes = ceil_div(len(k), batch) * batch

    def pixels(of_y: Integers, of_x: Integers) -> Any:
        """Products for each box and pixel, row by row: [boxes, pixels], boxes padded to batches."""
        product = (of_y[:, :, None] * of_x[:, None, :]).reshape(len(k), -1)
        padded = np.zeros((boxes, product.shape[1]))
        padded[: len(k)] = product
        return padded

    bins_y, bins_x = y.bins[k, i], x.bins[k, j]
    # If a bin has few samples, a tap looks at all; else it searches for those that read the pixel.
    reads_y, reads_x = y.reads[k, i], x.reads[k, j]
    looked_y, looked_x = y.looked_at(k, bins_y, reads_y), x.looked_at(k, bins_x, reads_x)
    searches = y.searches(k) + x.searches(k)
    taps = pixels(bins_y, bins_x)
    steps = {
        "pixel tap": taps,
        "search": pixels(bins_y * searches[:, None], bins_x),
        "row weight": pixels(looked_y, bins_x),
        "column weight": pixels(reads_y, looked_x),
    }
    if has_map:
        steps["row in map"] = pixels(reads_y, bins_x)
        steps["sample value"] = pixels(reads_y, reads_x)
    some = np.maximum(taps, 1)
    time_of_tap: Any = sum(count * clocks(name) for name, count in steps.items()) / some
    work_of_tap: Any = sum(n * STEPS[name].instructions for name, n in steps.items()) / some

    batches = boxes // batch
    shape = (batches, batch, taps.shape[1])
    taps = taps.reshape(shape)
    # Lanes of a warp diverge: a turn takes as long as the batch's longest tap.
    time_of_turn = time_of_tap.reshape(shape).max(axis=(1, 2))
    work_of_turn = work_of_tap.reshape(shape).max(axis=(1, 2))
    per_pixel = tiles.taps_per_pixel
    total = taps.sum(axis=1)  # [batches, pixels]
    rounds_of = np.maximum(1, np.ceil(total.max(axis=1) / per_pixel)).astype(np.int64)
    counts = TileCounts(batches, int(rounds_of.sum()), 0.0, 0, 0, 0, 0.0, int(total.sum()))
    for r in range(int(rounds_of.max(initial=0))):
        of_pixels = np.clip(total - r * per_pixel, 0, per_pixel)
        turns = np.ceil(of_pixels.sum(axis=1) / THREADS)
        counts.weights += float((turns * time_of_turn).sum())
        counts.weight_taps += int(turns.sum())
        warps = np.ceil(of_pixels.sum(axis=1) / WARP)
        counts.weight_instructions += float((warps * work_of_turn).sum())
        of_warps = np.ceil(of_pixels / taps_of_step).reshape(batches, WARPS, -1).max(axis=2)
        counts.steps += int(of_warps.max(axis=1).sum())
        counts.warp_steps += int(of_warps.sum())
    return counts


def tile_tally(k: Integers, num_rois: int, looks: bool = False) -> Tally:
    """The cost of a tile besides its batches. k: the boxes that read it. looks: the tile looks at
    all boxes, which are few; otherwise at bits."""
    tally = Tally()
    tally.add("tile", 1, WARPS)
    for first in range(0, max(num_rois, 1), LISTED_BOXES):
        tally.add("look" if looks else "bits", 1, WARPS)
        if ((k >= first) & (k < first + LISTED_BOXES)).any():
            tally.add("list", 1, WARPS)
    tally.add("store", 1, WARPS)
    return tally


def tiles_of(case: Case, channels_last: bool, element_size: int, design: Design = NOW) -> Tiles:
    levels, images = case.levels, case.num_images
    return make_tiles(levels, images, case.channels, channels_last, element_size, design)


def gather_feature_gradient(
    case: Case, channels_last: bool, element_size: int, design: Design = NOW, has_map: bool = True
) -> Work:
    """feature_gradient: its second launch."""
    tiles = tiles_of(case, channels_last, element_size, design)
    height, width = tiles.height, tiles.width
    slabs = ceil_div(case.channels, WARP * tiles.channels_per_lane)
    taps_of_step = tiles.taps_of_step(element_size)
    step = "step"
    if tiles.channels_per_lane == 1:
        step = "step of one"
    elif taps_of_step * tiles.pixels_per_warp == 8:
        step = "step of eight"
    lines = tiles.batch * (height + width)
    looks = tiles.look_at_boxes(case.num_rois, case.channels, design)
    nothing = tile_tally(np.arange(0), case.num_rois, looks)
    numbers = np.arange(case.num_rois)
    everything = boxes_of(case)
    empty = serial_steps = warp_steps = taps = batches = 0
    instructions = near = 0.0
    blocks: list[float] = []
    longest, longest_clocks = TileCounts(0, 0, 0.0, 0, 0, 0, 0.0, 0), 0.0
    for image in range(case.num_images):
        for level, (rows, columns, _) in enumerate(case.levels):
            chosen = [n for n, b in enumerate(everything) if (b.image, b.level) == (image, level)]
            boxes = [everything[n] for n in chosen]
            y = Lines.make(boxes, "y", rows, height)
            x = Lines.make(boxes, "x", columns, width)
            reads = ((y.span > 0).T.astype(np.float32) @ (x.span > 0).astype(np.float32)) > 0
            of_level = int((~reads).sum())
            empty += of_level
            blocks += [nothing.clocks] * of_level * slabs
            instructions += nothing.instructions * of_level * slabs
            for i, j in np.argwhere(reads):
                k = np.flatnonzero((y.span[:, i] > 0) & (x.span[:, j] > 0))
                near += float((y.span[k, i] * x.span[k, j]).sum())
                counts = count_tile(y, x, k, i, j, has_map, tiles, taps_of_step)
                tally = tile_tally(numbers[chosen][k], case.num_rois, looks)
                tally.add("batch", counts.batches, counts.batches * WARPS)
                if looks:
                    tally.add("make", counts.batches, 2 * counts.batches)
                tally.add(
                    "lines",
                    counts.batches * ceil_div(lines, THREADS),
                    counts.batches * ceil_div(lines, WARP),
                )
                tally.add("round", counts.rounds, counts.rounds * WARPS)
                tally.add(step, counts.steps, counts.warp_steps)
                tally.clocks += counts.weights
                tally.instructions += counts.weight_instructions
                if tally.clocks > longest_clocks:
                    longest, longest_clocks = counts, tally.clocks
                blocks += [tally.clocks] * slabs
                instructions += tally.instructions * slabs
                warp_steps += counts.warp_steps
                serial_steps += counts.steps
                taps += counts.taps
                batches += counts.batches
    pixels = case.num_images * sum(rows * columns for rows, columns, _ in case.levels)
    written = pixels * case.channels * element_size
    grad = case.num_rois * case.output_size**2 * case.channels * element_size
    instance = f"{tiles.vector}, {tiles.channels_per_lane}, {tiles.pixels_per_warp}"
    return Work(
        f"gather_feature_gradient_kernel<{TYPES[element_size]}, float, {instance}>",
        np.array(blocks),
        instructions,
        first_level=taps * case.channels * element_size,
        second_level=near * case.channels * element_size + written,
        device=written + grad,
        counts={
            "tiles": tiles.count,
            "tile": height * width,
            "empty": empty,
            "batches": batches,
            "longest batches": longest.batches,
            "longest steps": longest.steps,
            "longest taps": longest.weight_taps,
            "balance": warp_steps / (WARPS * serial_steps) if serial_steps else 1.0,
            "taps": taps,
            "step share": serial_steps * clocks(step) * slabs / max(1.0, float(np.sum(blocks))),
        },
    )


def touched_tiles(case: Case, channels_last: bool, element_size: int, design: Design = NOW) -> Work:
    """feature_gradient: its first launch; a warp serves a box."""
    tiles = tiles_of(case, channels_last, element_size, design)
    height, width = tiles.height, tiles.width
    clocks_of_box = []
    for box in boxes_of(case):
        tally = Tally()
        tally.add("box", 1)
        rows, columns = (
            ceil_div(len(np.unique(axis.touched() // tile)) or 1, WARP)
            for axis, tile in ((box.y, height), (box.x, width))
        )
        tally.add("tile rows", rows)
        tally.add("tile columns", rows * columns)
        clocks_of_box.append((tally.clocks, tally.instructions))
    per_block = [clocks_of_box[i : i + WARPS] for i in range(0, len(clocks_of_box), WARPS)]
    return Work(
        "touched_tiles_kernel<float>",
        np.array([max(c for c, _ in block) for block in per_block]),
        sum(n for _, n in clocks_of_box),
    )
