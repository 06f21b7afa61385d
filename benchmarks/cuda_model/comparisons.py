"""Compares the kernels with the former kernels, with other design choices and with target times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cases import Case
from cuda_model.calls import backward, seconds
from cuda_model.counts import forward, map_and_box_gradient
from cuda_model.kernels import NOW, Design
from cuda_model.machine import H100, STEPS
from cuda_model.text import (
    ALL,
    FLOAT16,
    FLOAT32,
    megabytes,
    microseconds,
    number,
    paragraph,
    table,
)
from cuda_model.tiles import gather_feature_gradient, touched_tiles


@dataclass(frozen=True)
class Proposal:
    text: str
    design: Design


GATHER_DESIGNS = (
    Proposal("current design", NOW),
    Proposal("without small tiles", replace(NOW, small_tiles=False)),
    Proposal("without one channel per lane", replace(NOW, channel_per_lane=False)),
    Proposal("bit sets for few boxes too", replace(NOW, looks_at_few_boxes=False)),
)
GATHER_CASES = ("one_small_map", "c4", "ten_boxes", "channels_3")
BOX_DESIGNS = (
    Proposal("current design", NOW),
    Proposal("one thread plans a box", replace(NOW, planned_by_lanes=False)),
    Proposal("gradient: all taps of a step loaded before use", replace(NOW, taps_in_flight=True)),
)
BOX_CASES = {
    "p3_7x7": True,
    "p2_7x7": True,
    "one_box": True,
    "ten_boxes": False,
    "channels_3": False,
}


def seconds_for_features(case: Case, design: Design) -> float:
    """All launches that the gradient of the features takes, channels_last, float32."""
    works = backward(case, True, FLOAT32, design)
    others = ("map_and_box", "sum_shares")
    return seconds([work for work in works if not any(name in work.kernel for name in others)])


def gather_designs(chosen: Sequence[Case]) -> list[str]:
    columns = [case for case in chosen if case.name in GATHER_CASES]
    rows = []
    for proposal in GATHER_DESIGNS:
        times = (seconds_for_features(case, proposal.design) for case in columns)
        rows.append([proposal.text, *map(microseconds, times)])
    head = "gradient of the features, all launches"
    return table((head, *(case.name for case in columns)), rows)


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


# Microseconds of the former kernels, by this model. Key: case, kernel, channels_last, element size.
FORMER = {
    ("one_small_map", "gradient", True, FLOAT32): 2866,
    ("c4", "gradient", True, FLOAT32): 489,
    ("p2_7x7", "gradient", True, FLOAT32): 227,
    ("p3_7x7", "gradient", True, FLOAT32): 173,
    ("channels_3", "gradient", True, FLOAT32): 147,
    ("ten_boxes", "gradient", True, FLOAT32): 61,
    ("large_map", "gradient", True, FLOAT32): 1280,
    ("large_map", "touched tiles", True, FLOAT32): 94,
    ("p2_1000_boxes_7x7", "forward", False, FLOAT32): 215,
    ("p3_7x7", "forward", False, FLOAT32): 86,
    ("c4", "forward", False, FLOAT32): 299,
    ("channels_3", "forward", False, FLOAT32): 27,
}


KERNELS = {
    "forward": forward,
    "gradient": gather_feature_gradient,
    "touched tiles": touched_tiles,
}


def former_rows(chosen: Sequence[Case]) -> list[str]:
    names = {case.name for case in chosen}
    rows = []
    for (name, kernel, channels_last, element_size), former in FORMER.items():
        if name in names:
            work = KERNELS[kernel](ALL[name], channels_last, element_size)
            layout = "channels_last" if channels_last else "contiguous"
            what = f"{kernel}, {name}, {layout}, float{8 * element_size}"
            rows.append([what, str(former), microseconds(work.seconds()), work.bound_by])
    return table(("kernel and case", "former", "now", "bound by"), rows)


def out_of_reach() -> list[str]:
    """Target times that the kernels cannot reach according to the counts."""
    few = gather_feature_gradient(ALL["channels_3"], True, FLOAT32)
    p3, c4 = (gather_feature_gradient(ALL[name], True, FLOAT32) for name in ("p3_7x7", "c4"))
    p2 = forward(ALL["p2_1000_boxes_7x7"], False, FLOAT32)
    pixels = sum(height * width for height, width, _ in ALL["p2_1000_boxes_7x7"].levels)
    copied = 2 * ALL["p2_1000_boxes_7x7"].num_images * 256 * FLOAT32 * pixels
    one = backward(ALL["one_box"], True, FLOAT32)
    longest = next(w for w in one if "map_and_box" in w.kernel).limits()["longest block"]
    eight = STEPS["step of eight"].clocks
    small = gather_feature_gradient(ALL["one_small_map"], True, FLOAT32)
    steps, taps = (small.counts[f"longest {name}"] for name in ("steps", "taps"))
    of_p2 = gather_feature_gradient(ALL["p2_7x7"], True, FLOAT32)
    of_batch = sum(STEPS[name].clocks for name in ("batch", "lines", "round"))
    in_batches = of_p2.counts["batches"] * of_batch / of_p2.blocks.sum()
    sentences = (
        f"Gradient of one small map in 80-120 us: the longest tile has {number(steps)} steps of "
        f"{STEPS['step'].clocks} clocks, {microseconds(steps * STEPS['step'].clocks / H100.clock)} "
        f"us, and {number(taps)} weights one after another.",
        f"Gradient of p2_7x7 in 115 us: there are {number(of_p2.counts['batches'])} batches. The "
        f"start and end of each take {of_batch} clocks, together {100 * in_batches:.0f} % of all "
        f"clocks. Steps take {100 * of_p2.counts['step share']:.0f} %.",
        f"Gradient of three channels as fast as torchvision's (6-10 us): the kernel computes the "
        f"weights of {number(few.counts['taps'] / 1000)} thousand taps for any number of channels. "
        f"The instructions alone take {microseconds(few.limits()['instructions'])} us.",
        f"float16 gradient 15-25 % faster than the float32 gradient: only steps become faster. "
        f"They are {100 * p3.counts['step share']:.0f} % of the clocks of p3_7x7 and "
        f"{100 * c4.counts['step share']:.0f} % of the clocks of c4. One step of eight taps of 2 "
        f"bytes takes {eight} clocks, two steps of four taps of 4 bytes take "
        f"{2 * STEPS['step'].clocks}. The forward pass gains 15 % or more if it is memory-bound.",
        f"Fewer sectors in the contiguous forward pass on P2: in any order, the boxes fetch "
        f"{megabytes(p2.second_level)} MB through the second level. A transposed copy moves "
        f"{megabytes(copied)} MB but exceeds the limit of scratch memory.",
        f"One box as fast as with torchvision (3-4 us, two launches backward): a backward pass has "
        f"{len(one)} launches, and the longest block of the gradient of the maps takes "
        f"{microseconds(longest)} us.",
    )
    return [paragraph(sentence, "* ") for sentence in sentences]
