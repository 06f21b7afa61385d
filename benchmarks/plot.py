"""Plots benchmark rows.

Named cases: a panel per case and mode, a bar per provider and layout, labelled with the fraction of
the limit that it reaches. Curves: a panel per curve, layout and mode, a line per provider.
--overview: the forward pass of all cases on one axis: this library, torchvision, the fastest other
peer and the limit. The limit is the time of the minimum memory traffic at copy bandwidth.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from providers import OURS, YARDSTICK
from report import Row, read_rows


def limit(row: Row) -> float:
    """Milliseconds."""
    bandwidth = row.identity["copy_bytes_per_second"]
    assert isinstance(bandwidth, float)
    return row.least_traffic_bytes / bandwidth * 1e3


def draw_bars(panel: Axes, rows: Sequence[Row], colors: dict[str, str]) -> None:
    # The limit of the first provider, which computes with maps.
    names = ["limit", *(f"{row.provider}\n{row.layout}" for row in rows)]
    times = [limit(rows[0]), *((row.median_seconds or 0) * 1e3 for row in rows)]
    shares = [
        "failed" if row.fraction_of_limit is None else f"{row.fraction_of_limit:.0%}"
        for row in rows
    ]
    bars = panel.barh(names, times, color=["0.6", *(colors[row.provider] for row in rows)])
    panel.bar_label(bars, ["", *shares], fontsize=7)
    panel.axvline(times[0], color="0.6", linestyle="--", linewidth=1)
    panel.invert_yaxis()
    panel.tick_params(labelsize=7)
    panel.set_xlabel("milliseconds; label: share of the limit", fontsize=7)


def draw_lines(panel: Axes, rows: Sequence[Row], colors: dict[str, str]) -> None:
    name = rows[0].curve
    for provider in dict.fromkeys(row.provider for row in rows):
        line = [row for row in rows if row.provider == provider and row.median_seconds is not None]
        sizes = [row.problem[name] for row in line]
        times = [row.median_seconds * 1e3 for row in line if row.median_seconds is not None]
        panel.plot(sizes, times, marker=".", color=colors[provider], label=provider)
    first = [row for row in rows if row.provider == rows[0].provider]
    sizes, limits = [row.problem[name] for row in first], [limit(row) for row in first]
    panel.plot(sizes, limits, color="0.6", linestyle="--", label="limit")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xlabel(name, fontsize=8)
    panel.set_ylabel("milliseconds", fontsize=8)
    panel.legend(fontsize=6)


def draw(rows: Sequence[Row]) -> Figure:
    """`rows` are from one machine. Either all or none of them belong to curves."""
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(row.provider for row in rows))}

    def line_of(row: Row) -> str:
        what = f"over {row.curve}, {row.layout}" if row.curve else row.case
        parts = [what, row.dtype, f"{row.threads} threads"]
        return ", ".join([*parts, "deterministic"] if row.deterministic else parts)

    lines = list(dict.fromkeys(map(line_of, rows)))
    modes = list(dict.fromkeys(row.mode for row in rows))
    figure, panels = plt.subplots(
        len(lines), len(modes), squeeze=False, figsize=(5 * len(modes), 3.6 * len(lines))
    )
    for panel, (line, mode) in zip(panels.flat, product(lines, modes), strict=True):
        shown = [row for row in rows if (line_of(row), row.mode) == (line, mode)]
        if shown:
            (draw_lines if shown[0].curve else draw_bars)(panel, shown, colors)
        panel.set_title(f"{line}: {mode}", fontsize=9)
    identity = rows[0].identity
    figure.suptitle(
        f"{identity['device']}, {identity['cpu']}, torch {identity['torch']}, {identity['time']}",
        fontsize=8,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    return figure


def fastest(rows: Sequence[Row]) -> float | None:
    """Milliseconds; of graph replays, where there are any."""
    times = [row.graph_seconds or row.median_seconds for row in rows]
    return min((time * 1e3 for time in times if time is not None), default=None)


def draw_overview(rows: Sequence[Row]) -> Figure:
    """`rows` are from one machine. Draws the rows with the first row's capability, type, threads
    and memory setting. Peers read contiguous features."""

    def kind(row: Row) -> tuple[object, ...]:
        identity = row.identity
        return identity["capability"], identity["keeps_memory"], row.dtype, row.threads

    forward = [row for row in rows if row.mode == "forward" and kind(row) == kind(rows[0])]
    cases = list(dict.fromkeys(row.case for row in forward))
    figure, panel = plt.subplots(figsize=(9, 0.4 * len(cases) + 1.6), layout="constrained")

    def draw_points(name: str, style: str, chosen: Callable[[Row], bool], color: str) -> None:
        points = []
        for y, case in enumerate(cases):
            best = fastest([row for row in forward if row.case == case and chosen(row)])
            if best is not None:
                points.append((best, y))
        if points:
            panel.plot(*zip(*points, strict=True), style, color=color, label=name, markersize=7)

    def is_peer(row: Row) -> bool:
        return not row.provider.startswith(OURS) and row.layout == "contiguous"

    draw_points(YARDSTICK, "o", lambda row: is_peer(row) and row.provider == YARDSTICK, "C3")
    draw_points(
        "the fastest other peer, no maps",
        "s",
        lambda row: is_peer(row) and row.provider != YARDSTICK and "no maps" in row.provider,
        "C1",
    )

    def draw_ours(provider: str, style: str, layout: str, color: str) -> None:
        def is_plotted(row: Row) -> bool:
            return (row.provider, row.layout) == (provider, layout)

        draw_points(f"{provider}: {layout}", style, is_plotted, color)

    for layout, color in (("contiguous", "C0"), ("channels_last", "C2")):
        draw_ours(f"{OURS}, no maps", "<", layout, color)
        draw_ours(OURS, "D", layout, color)
    limits = [max(limit(row) for row in forward if row.case == case) for case in cases]
    panel.plot(limits, range(len(cases)), "|", color="0.3", markersize=16, label="limit, with maps")
    panel.set_yticks(range(len(cases)), cases)
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.set_xlim(left=max(min(limits), (fastest(forward) or 0) / 20) / 2)
    panel.set_xlabel("milliseconds, forward")
    panel.grid(axis="x", which="both", alpha=0.3)
    figure.legend(fontsize=7, loc="outside upper center", ncols=3)
    identity = rows[0].identity
    is_gpu = identity["device_kind"] == "cuda"
    where = identity["device"] if is_gpu else f"{identity['cpu']}, {rows[0].threads} threads"
    panel.set_title(f"{where}, {rows[0].dtype}", fontsize=8)
    return figure


def main(files: Sequence[Path], picture: Path, overview: bool = False) -> None:
    rows = [row for file in files for row in read_rows(file)]
    if not rows:
        sys.exit(f"no rows with the current fields in {', '.join(map(str, files))}")
    (draw_overview if overview else draw)(rows).savefig(picture, dpi=150)
    print(picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument(
        "rows", type=Path, nargs="+", metavar="ROWS.jsonl", help="files that the benchmarks wrote"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PICTURE.png",
        help="file to write; default: the first ROWS with the suffix .png",
    )
    parser.add_argument("--overview", action="store_true", help="the forward pass of all cases")
    arguments = parser.parse_args()
    picture = arguments.output or arguments.rows[0].with_suffix(".png")
    main(arguments.rows, picture, arguments.overview)
