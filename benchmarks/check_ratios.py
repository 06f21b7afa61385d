"""Checks whether this library has become slower than its peers.

Repeats the measurements recorded in benchmarks/results/ for this kind of device, number of threads
and CPU capability, and compares ratios of medians: ours / torchvision's, or with --all-peers ours /
each peer's, which takes three times as long. Prefers recorded rows of the same processor, and takes
the largest ratio of several recorded runs. Ratios within one run are more robust than times:
another or a busy machine changes both medians, though not always by the same factor. Cases with a
worse ratio are measured up to two more times; the best ratio counts.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from providers import OURS, YARDSTICK
from report import RESULTS, Row, align, read_rows
from runner import FEW_CHANNELS, MULTI_SCALE, ROI_ALIGN, run

RETRIES = 2  # of cases that are worse


class Pair(NamedTuple):
    """Identifies a ratio. Ratios of two runs are comparable if their pairs are equal."""

    device_kind: object
    capability: object  # of the CPU kernels; "" on CUDA
    keeps_memory: bool
    setting: tuple[object, ...]
    problem: str
    ours: str
    peer: str


def ratios_of_runs(rows: Iterable[Row]) -> dict[Pair, list[float | None]]:
    """Our median / the peer's, for each run that has both, oldest first. None: ours failed."""
    runs: dict[tuple[object, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: str(row.identity["time"])):
        runs.setdefault((row.identity["time"], *row.setting()), []).append(row)
    found: dict[Pair, list[float | None]] = {}
    for together in runs.values():
        for ours in (row for row in together if row.provider.startswith(OURS)):
            for peer in (row for row in together if not row.provider.startswith(OURS)):
                has_more_to_do = is_plain(ours) and not is_plain(peer)
                if peer.median_seconds is not None and not has_more_to_do:
                    ratio = ours.median_seconds and ours.median_seconds / peer.median_seconds
                    found.setdefault(pair_of(ours, peer), []).append(ratio)
    return found


def ratios(rows: Iterable[Row]) -> dict[Pair, float | None]:
    """The ratios of the last run."""
    return {pair: values[-1] for pair, values in ratios_of_runs(rows).items()}


def largest_ratios(rows: Iterable[Row]) -> dict[Pair, float | None]:
    """The ratios of the slowest recorded run. On a shared host, runs of one version can differ by a
    factor of two, because load does not slow the peer and this library equally."""
    return {
        pair: max((ratio for ratio in values if ratio is not None), default=None)
        for pair, values in ratios_of_runs(rows).items()
    }


def rows_of_nearest_processor(recorded: Sequence[Row], fresh: Sequence[Row]) -> list[Row]:
    """For each setting, the rows of the processor that measured `fresh`, or all if it has none."""
    here = {processor(row) for row in fresh}
    settings = {(row.setting(), keeps_memory(row)) for row in recorded if processor(row) in here}
    return [
        row
        for row in recorded
        if processor(row) in here or (row.setting(), keeps_memory(row)) not in settings
    ]


def processor(row: Row) -> object:
    return row.identity["cpu" if row.identity["device_kind"] == "cpu" else "device"]


def keeps_memory(row: Row) -> bool:
    return bool(row.identity.get("keeps_memory", False))


def is_plain(row: Row) -> bool:
    return "no maps" in row.provider


def pair_of(ours: Row, peer: Row) -> Pair:
    kind = ours.identity["device_kind"]
    return Pair(
        kind,
        ours.identity["capability"] if kind == "cpu" else "",
        keeps_memory(ours),
        ours.setting(),
        str(sorted(ours.problem.items())),
        ours.provider,
        peer.provider,
    )


def worse_pairs(
    recorded: dict[Pair, float | None], fresh: dict[Pair, float | None], tolerance: float
) -> set[Pair]:
    found = set()
    for pair, now in fresh.items():
        before = recorded.get(pair)
        if before is not None and (now is None or now > before * (1 + tolerance)):
            found.add(pair)
    return found


def compare(
    recorded: dict[Pair, float | None], fresh: dict[Pair, float | None], tolerance: float
) -> tuple[str, int, int]:
    """A table, the number of compared ratios, and the number of worse ratios."""
    lines = [["setting", "ours", "peer", "recorded", "now", "change", ""]]
    worse = worse_pairs(recorded, fresh, tolerance)
    for pair, now in fresh.items():
        before = recorded.get(pair)
        if before is None:
            continue
        numbers = ["failed", ""] if now is None else [f"{now:.3g}", f"{now / before - 1:+.0%}"]
        setting = ", ".join(str(part) for part in pair.setting if part is not False)
        verdict = "WORSE" if pair in worse else ""
        lines.append([setting, pair.ours, pair.peer, f"{before:.3g}", *numbers, verdict])
    return align(lines), len(lines) - 1, len(worse)


def measure_again(recorded: Sequence[Row], device: str, options: Sequence[str]) -> list[Row]:
    """Measures the recorded cases of this kind of device, without compiled peers."""
    rows: list[Row] = []
    kind = torch.device(device).type
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.jsonl"
        for suite in (ROI_ALIGN, FEW_CHANNELS, MULTI_SCALE):
            known = {case.name for case in suite.cases}
            cases_of: dict[tuple[str, str, int, bool], set[str]] = {}
            for row in recorded:
                is_kind = row.identity["device_kind"] == kind and not keeps_memory(row)
                if row.case in known and is_kind:
                    key = (row.dtype, row.layout, row.threads, row.deterministic)
                    cases_of.setdefault(key, set()).add(row.case)
            for (dtype, layout, threads, deterministic), cases in cases_of.items():
                command = ["--device", device, "--no-compile", "--json", str(output), *options]
                command += ["--dtype", dtype, "--layout", layout, "--threads", str(threads)]
                command += ["--deterministic", "on" if deterministic else "off"]
                run(suite, [*command, "--case", *sorted(cases)])
                rows += read_rows(output)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="exit status: 0; 1: a ratio is worse; 2: nothing to compare",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.25,
        help="permitted relative growth of a ratio; default: %(default)s",
    )
    parser.add_argument(
        "--recorded",
        type=Path,
        nargs="+",
        default=sorted([*RESULTS.glob("recorded-*.jsonl"), *RESULTS.glob("earlier-*.jsonl")]),
        metavar="FILE",
        help="rows to compare with; default: recorded-*.jsonl and earlier-*.jsonl in "
        "benchmarks/results/",
    )
    parser.add_argument(
        "--fresh",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="compare these rows instead of measuring",
    )
    parser.add_argument("--case", nargs="+", metavar="NAME", help="default: all recorded")
    parser.add_argument(
        "--rounds", type=int, help="rounds per measurement; default: the benchmark's"
    )
    parser.add_argument(
        "--all-peers", action="store_true", help="compare with every peer, not only torchvision"
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default here: %(default)s",
    )
    arguments = parser.parse_args(argv)

    recorded = [row for path in arguments.recorded for row in read_rows(path)]
    if arguments.case:
        recorded = [row for row in recorded if row.case in arguments.case]
    if arguments.fresh:
        fresh = [row for path in arguments.fresh for row in read_rows(path)]
    else:
        options = ["--rounds", str(arguments.rounds)] if arguments.rounds else []
        if not arguments.all_peers:
            options += ["--provider", OURS, f"{OURS}, no maps", YARDSTICK]
        fresh = measure_again(recorded, arguments.device, options)
    before, now = largest_ratios(rows_of_nearest_processor(recorded, fresh)), ratios(fresh)
    for _ in range(0 if arguments.fresh else RETRIES):
        slow = {pair.setting[0] for pair in worse_pairs(before, now, arguments.tolerance)}
        if not slow:
            break
        chosen = [row for row in recorded if row.case in slow]
        again = ratios(measure_again(chosen, arguments.device, options))
        for pair in again.keys() & now.keys():
            measured = [ratio for ratio in (now[pair], again[pair]) if ratio is not None]
            now[pair] = min(measured, default=None)
    table, compared, worse = compare(before, now, arguments.tolerance)
    if compared == 0:
        print("nothing recorded is comparable: other sizes, device, threads or CPU capability")
        return 2
    print(table)
    print(f"{worse} of {compared} ratios are worse by more than {arguments.tolerance:.0%}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
