"""Writes the tables of README.md and benchmarks/README.md from the recorded rows and the study.

A table stands between the lines ``<!-- table NAME -->`` and ``<!-- end -->``. The recorded rows are
in benchmarks/results/recorded-*.jsonl.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from providers import OURS, YARDSTICK
from report import RESULTS, Row, read_rows

ROOT = RESULTS.parent.parent
PAGES = (ROOT / "README.md", RESULTS.parent / "README.md")
OURS_PLAIN = f"{OURS}, no maps"
LAYOUTS = ("channels_last", "contiguous")
PEERS = ("onnxruntime, no maps", "openvino, no maps")
FEW_CHANNELS = (
    "crop_224",
    "crop_224_one_sample",
    "crop_256x128_adaptive",
    "crop_32x128",
    "mask_targets",
    "tiny_maps",
    "four_channels_64x64",
    *(f"channels_{c}_{bins}" for c in (8, 16, 32) for bins in ("7x7", "14x14")),
)
DETECTORS = ("p3_7x7", "p2_7x7", "p2_14x14", "c4", "refine_training", "refine_inference")
ONE_THREAD = ("channels_96", "channels_130", "ten_boxes", "one_box")
HALVES = ("float16", "bfloat16")
ON_GPU = (
    "p3_7x7",
    "p2_7x7",
    "p3_14x14",
    "p2_14x14",
    "c4",
    "large_boxes",
    "p2_1000_boxes_7x7",
    "p2_1000_boxes_14x14",
    "channels_96",
    "channels_130",
    "six_boxes",
    "ten_boxes",
    "one_box",
    "channels_3",
    "tiny",
)
FLOAT32_FEATURES = f"{YARDSTICK}, float32 features"


class Recorded:
    """The recorded rows, indexed by what they measured."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.on_gpu = {
            (row.case, row.provider, row.mode, row.layout): row
            for row in rows
            if row.identity["device_kind"] == "cuda"
        }
        self.rows = {
            (
                row.case,
                row.provider,
                row.mode,
                row.layout,
                row.dtype,
                row.threads,
                str(row.identity["capability"]),
                bool(row.identity["keeps_memory"]),
            ): row
            for row in rows
            if row.identity["device_kind"] == "cpu"
        }

    def row(
        self,
        case: str,
        provider: str,
        mode: str = "forward",
        layout: str = "contiguous",
        *,
        dtype: str = "float32",
        threads: int = 2,
        capability: str = "avx512",
        kept: bool = False,
    ) -> Row:
        key = (case, provider, mode, layout, dtype, threads, capability, kept)
        if key not in self.rows:
            raise KeyError(f"no recorded row of {key}")
        return self.rows[key]

    def seconds(self, *args: str, **options: object) -> float:
        seconds = self.row(*args, **options).median_seconds  # type: ignore[arg-type]
        assert seconds is not None, (args, options)
        return seconds

    def share(self, *args: str, **options: object) -> str:
        """Fraction of the limit reached."""
        return f"{self.row(*args, **options).fraction_of_limit:.0%}"  # type: ignore[arg-type]


def times(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio < 3 else f"{ratio:.0f}x"


def both_modes(ratio: Callable[[str], float]) -> str:
    return " / ".join(times(ratio(mode)) for mode in ("forward", "forward+backward"))


def detector_ratio(
    rows: Recorded, case: str, layout: str, peer: str = YARDSTICK, **options: object
) -> str:
    """Ratio of two runs on the same layout."""

    def ratio(mode: str) -> float:
        theirs = rows.seconds(case, peer, mode, layout, **options)
        return theirs / rows.seconds(case, OURS, mode, layout, **options)

    return both_modes(ratio)


def crop_ratio(rows: Recorded, case: str, layout: str, provider: str = OURS, **options: object):
    """Ratio to torchvision on contiguous tensors, because torchvision converts other layouts."""

    def ratio(mode: str) -> float:
        theirs = rows.seconds(case, YARDSTICK, mode, "contiguous", **options)
        return theirs / rows.seconds(case, provider, mode, layout, **options)

    return ratio


def peak_megabytes(rows: Recorded, provider: str, layout: str) -> str:
    """Peak memory of p3_7x7, forward + backward, without the arguments."""
    peak = rows.row("p3_7x7", provider, "forward+backward", layout).peak_extra_bytes
    assert peak is not None
    return f"{peak / 1e6:.0f} MB"


def markdown(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    table = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


# ---- tables --------------------------------------------------------------------------------------


def speed(rows: Recorded) -> str:
    """A few rows for the front page, the smallest speed-up, and memory against the composition."""
    boxes = "512 boxes on P3, 256 channels, 7 x 7 bins"
    lines = [[f"{boxes}, {layout}", detector_ratio(rows, "p3_7x7", layout)] for layout in LAYOUTS]
    crops = both_modes(crop_ratio(rows, "crop_224", "contiguous"))
    lines.append(["24 crops of a photograph to 224 x 224, contiguous", crops])
    theirs, ours = (rows.seconds("one_box", provider, threads=1) for provider in (YARDSTICK, OURS))
    smallest = times(theirs / ours)
    small, large = (
        peak_megabytes(rows, provider, "channels_last") for provider in (OURS, "composition")
    )
    notes = (
        f"The smallest speed-up is {smallest}: forward, one box, contiguous features, one thread. "
        f"Forward + backward of the first row takes {small} of memory. The same function, "
        f"composed of torchvision's operators, takes {large}."
    )
    return f"{markdown(['', 'forward / forward + backward'], lines)}\n\n{notes}"


def evidence(_: Recorded) -> str:
    """Differences of the study, most with recommended settings."""
    recommended = "rm_saroialign_recommended"
    gains = {
        "Mask R-CNN, equal iterations": (recommended, "control"),
        "Mask R-CNN, equal time": (recommended, "control_time"),
        "the same model and settings, plain RoIAlign": (recommended, "rm_roialign_recommended"),
        "the paper's settings over Mask R-CNN, equal iterations": ("rm_saroialign", "control"),
    }
    data_sets = {
        "shape": ("generated, class by shape", "seed"),
        "color": ("generated, class by colour", "seed"),
        "bin": ("photographs of heaps, 20 classes", "fold"),
        "mushrooms": ("photographs of mushrooms", "fold"),
    }
    found = {
        (each["data"], (each["a"], each["b"])): each
        for each in json.loads((ROOT / "examples" / "results" / "summary.json").read_text())
        if each["preset"] == "cpu"
    }

    def gain(data: str, rows: tuple[str, str]) -> str:
        difference = found[data, rows]
        texts = []
        for mean, low, high in (difference["box"], difference["mask"]):
            interval = f" [{low:.1f}, {high:.1f}]" if difference["interval"] else ""
            texts.append(f"{mean:+.1f}{interval}")
        return " / ".join(texts)

    def title(data: str) -> str:
        name, unit = data_sets[data]
        counts = {found[data, rows]["seeds"] for rows in gains.values()}
        count = " to ".join(map(str, sorted(counts)))
        return f"{name}, {count} {unit}{'' if counts == {1} else 's'}"

    lines = [[label, *(gain(data, rows) for data in data_sets)] for label, rows in gains.items()]
    return markdown(["gain over", *map(title, data_sets)], lines)


def detectors(rows: Recorded) -> str:
    titles = ["", *LAYOUTS, *(f"memory kept: {layout}" for layout in LAYOUTS)]
    lines = [
        [
            case,
            *(
                detector_ratio(rows, case, at, kept=kept)
                for kept in (False, True)
                for at in LAYOUTS
            ),
        ]
        for case in DETECTORS
    ]
    lines += [
        [
            f"{dtype} p3_7x7 against float32",
            *(detector_ratio(rows, "p3_7x7", at, FLOAT32_FEATURES, dtype=dtype) for at in LAYOUTS),
            "",
            "",
        ]
        for dtype in HALVES
    ]
    lines += [
        [
            f"one thread: {case}",
            *(detector_ratio(rows, case, layout, threads=1) for layout in LAYOUTS),
            "",
            "",
        ]
        for case in ONE_THREAD
    ]
    return markdown(titles, lines)


def limits(rows: Recorded) -> str:
    titles = ["share of the limit, memory kept", *(f"{layout}" for layout in LAYOUTS)]
    lines = [
        [
            case,
            *(
                " / ".join(
                    rows.share(case, OURS, mode, layout, kept=True)
                    for mode in ("forward", "backward")
                )
                for layout in LAYOUTS
            ),
        ]
        for case in DETECTORS
    ]
    return markdown(titles, lines)


def composition(rows: Recorded) -> str:
    """Ratios to the composition on p3_7x7."""
    return markdown(
        ["p3_7x7", "forward / forward + backward", "ours", "composition"],
        (
            [
                layout,
                detector_ratio(rows, "p3_7x7", layout, "composition"),
                peak_megabytes(rows, OURS, layout),
                peak_megabytes(rows, "composition", layout),
            ]
            for layout in LAYOUTS
        ),
    )


def few_channels(rows: Recorded) -> str:
    def milliseconds(*args: str) -> str:
        return f"{rows.seconds(*args) * 1e3:.2g}"

    def best_peer(case: str) -> str:
        found = [
            rows.rows.get((case, p, "forward", "contiguous", "float32", 2, "avx512", False))
            for p in PEERS
        ]
        known = [row.median_seconds for row in found if row is not None and row.median_seconds]
        return f"{min(known) * 1e3:.2g}" if known else "-"

    def ours(case: str, provider: str) -> str:
        return " / ".join(
            f"{milliseconds(case, provider, 'forward', layout)} "
            f"({rows.share(case, provider, 'forward', layout)})"
            for layout in reversed(LAYOUTS)
        )

    return markdown(
        ["case", "torchvision", "best peer", "plain", "with maps"],
        (
            [
                case,
                milliseconds(case, YARDSTICK),
                best_peer(case),
                ours(case, OURS_PLAIN),
                ours(case, OURS),
            ]
            for case in FEW_CHANNELS
        ),
    )


def few_channels_ratios(rows: Recorded) -> str:
    """Rows by instruction set: forward plain, forward with maps, both directions with maps."""
    capabilities = ("avx512", "avx2", "portable")

    def cell(case: str, capability: str) -> str:
        return ", ".join(
            " / ".join(
                times(crop_ratio(rows, case, layout, provider, capability=capability)(mode))
                for layout in reversed(LAYOUTS)
            )
            for provider, mode in (
                (OURS_PLAIN, "forward"),
                (OURS, "forward"),
                (OURS, "forward+backward"),
            )
        )

    return markdown(
        ["case", *capabilities],
        ([case, *(cell(case, c) for c in capabilities)] for case in FEW_CHANNELS),
    )


def gpu(rows: Recorded) -> str:
    """Times of graph replays, and their ratios to torchvision."""
    modes = ("forward", "forward+backward")

    def seconds(case: str, provider: str, mode: str, layout: str) -> float:
        found = rows.on_gpu[case, provider, mode, layout].graph_seconds
        assert found is not None, (case, provider, mode, layout)
        return found

    def cells(case: str, layout: str) -> Iterator[str]:
        for provider in (OURS, OURS_PLAIN):
            ours = {mode: seconds(case, provider, mode, layout) for mode in modes}
            if provider == OURS:
                yield " / ".join(f"{time * 1e6:.0f}" for time in ours.values())
            yield both_modes(lambda mode: seconds(case, YARDSTICK, mode, layout) / ours[mode])  # noqa: B023

    columns = ("us", "with maps", "plain")
    titles = ["", *(f"{layout}: {column}" for layout in LAYOUTS for column in columns)]
    return markdown(
        titles, ([case, *(cell for at in LAYOUTS for cell in cells(case, at))] for case in ON_GPU)
    )


def gpu_since(_: Recorded) -> str:
    """Device times of the passes that changed after the rows of `gpu` were recorded."""
    text = (RESULTS / "recorded-kernels-cuda.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    first = rows[0]["identity"]["commit"]

    def total(of: tuple[str, str, str], provider: str, blocks: int, *, is_first: bool) -> str:
        found = [
            row["microseconds"] * row["launches"]
            for row in rows
            if (row["case"], row["layout"], row["pass"]) == of
            and (row["provider"], row["wanted_blocks"]) == (provider, blocks)
            and (row["identity"]["commit"] == first) == is_first
        ]
        return f"{sum(found):.0f}"

    changed = [
        *((case, "contiguous", "backward", 512) for case in ("p3_7x7", "p2_7x7", "c4", "one_box")),
        *(("c4", layout, "forward", 1024) for layout in LAYOUTS),
    ]
    lines = []
    for case, layout, direction, blocks in changed:
        of = (case, layout, direction)
        lines.append(
            [
                ", ".join(of),
                total(of, OURS, 512, is_first=True),
                total(of, OURS, blocks, is_first=False),
                total(of, YARDSTICK, 512, is_first=True),
            ]
        )
    return markdown(["us on the device", "then", "now", "torchvision"], lines)


TABLES = {
    "gpu": gpu,
    "gpu_since": gpu_since,
    "speed": speed,
    "evidence": evidence,
    "detectors": detectors,
    "limits": limits,
    "composition": composition,
    "few_channels": few_channels,
    "few_channels_ratios": few_channels_ratios,
}
_BLOCK = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def with_tables(text: str, rows: Recorded) -> str:
    """The page with its tables rewritten."""
    return _BLOCK.sub(lambda m: f"{m[1]}\n{TABLES[m[2]](rows)}\n\n{m[4]}", text)


def recorded_rows() -> Recorded:
    files = sorted(RESULTS.glob("recorded-*.jsonl"))
    return Recorded([row for file in files for row in read_rows(file) if not row.curve])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a table differs"
    )
    args = parser.parse_args(argv)
    rows = recorded_rows()
    stale = []
    for page in PAGES:
        text = page.read_text()
        fresh = with_tables(text, rows)
        if fresh != text:
            stale.append(page.relative_to(ROOT))
            if not args.check:
                page.write_text(fresh)
    for page in stale:
        print(f"{page}: {'differs from the recorded rows' if args.check else 'written'}")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
