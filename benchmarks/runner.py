"""Command line of the benchmarks: checks every provider, times the correct ones, reports."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import cases
import providers
from cases import CURVES, Case, Inputs, curve, level_of_boxes, make_inputs, pixels_under_boxes
from providers import OURS, YARDSTICK, Provider
from report import RESULTS, Row, describe_run, format_table, write_rows
from shape_roi_align import reference
from shape_roi_align._arguments import check_options
from timing import (
    MODES,
    Call,
    Measurement,
    Pool,
    copy_bandwidth,
    describe,
    keep_freed_memory,
    least_traffic,
    make_call,
    make_replay,
    measure,
)

try:
    from tqdm import tqdm
except ImportError:  # optional: no progress bar

    def tqdm(items, **_):  # type: ignore[no-untyped-def]
        return items


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

# Permitted error, relative to the largest value. A provider may sum a few hundred terms in the
# dtype of the features.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Permitted error with float16 boxes: coordinates around 336 have steps of a quarter of a pixel.
HALF_COORDINATES = 0.5


# The suffix in --help for the devices on which a case runs by default.
WHERE = {("cpu", "cuda"): "", ("cuda",): " (CUDA only)", (): " (by name only)"}


class Suite(NamedTuple):
    name: str
    cases: list[Case]
    smoke: Case
    providers: Callable[[], list[Provider]]


ROI_ALIGN = Suite("roi_align", cases.SINGLE_LEVEL, cases.SMOKE, providers.single_level)
FEW_CHANNELS = Suite(
    "few_channels", cases.FEW_CHANNELS, cases.SMOKE_FEW_CHANNELS, providers.single_level
)
MULTI_SCALE = Suite("multiscale", cases.MULTI_SCALE, cases.SMOKE_MULTI_SCALE, providers.multi_scale)


class Setting(NamedTuple):
    """Fields that the rows of one measurement share."""

    case: Case
    curve: str
    dtype: str
    layout: str
    deterministic: bool
    device: torch.device
    rounds: int
    identity: dict[str, object]


class Wrong(Exception):
    """The provider disagrees with the reference."""


def run(suite: Suite, argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 if a provider is wrong, this library fails or nothing was measured."""
    arguments = parse(suite, argv)
    device = torch.device(arguments.device)
    chosen = choose_providers(suite, arguments)
    if arguments.keep_memory:
        keep_freed_memory()
    rows: list[Row] = []
    write_rows(rows, arguments.json)
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        bandwidth = copy_bandwidth(device)
        identity = describe_run(device, bandwidth) | {"keeps_memory": arguments.keep_memory}
        print(f"copy bandwidth of {threads} threads: {bandwidth / 1e9:.1f} GB/s", file=sys.stderr)
        plan = product(
            choose_cases(suite, arguments), arguments.dtype, arguments.layout, arguments.modes
        )
        for case, dtype, layout, deterministic in tqdm(list(plan), disable=None, desc=suite.name):
            setting = Setting(
                case,
                arguments.curve,
                dtype,
                layout,
                deterministic,
                device,
                arguments.rounds,
                identity,
            )
            with deterministic_algorithms(deterministic):
                news = list(measure_setting(setting, chosen))
            write_rows(news, arguments.json, append=True)  # at once: a long run may be interrupted
            rows += news
    if rows:
        print(format_table(rows))
    print(f"{len(rows)} rows in {arguments.json}")
    mistakes = find_mistakes(rows)
    for mistake in mistakes:
        print(f"ERROR: {mistake}", file=sys.stderr)
    return 0 if rows and not mistakes else 1


def find_mistakes(rows: Sequence[Row]) -> list[str]:
    """Errors that fail a run: any failure of this library, any provider that is Wrong."""
    texts = [
        f"{row.case}, {row.dtype}, {row.layout}: {row.provider}: {row.failure}"
        for row in rows
        if row.failure and (row.provider.startswith(OURS) or row.failure.startswith(Wrong.__name__))
    ]
    return list(dict.fromkeys(texts))


@contextmanager
def deterministic_algorithms(on: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def measure_setting(setting: Setting, chosen: Sequence[Provider]) -> Iterator[Row]:
    """A row per provider and mode."""
    case, dtype, device = setting.case, DTYPES[setting.dtype], setting.device
    inputs = make_inputs(case, dtype=dtype, device=device, memory_format=LAYOUTS[setting.layout])
    pixels = pixels_under_boxes(case, inputs)
    prepared = {p: p.prepare(inputs) for p in chosen if p.takes(case, dtype, device)}
    pools: dict[Provider, Pool] = {}
    failures: dict[Provider, str] = {}
    expected: dict[object, list[Tensor]] = {}
    for provider, its_inputs in prepared.items():
        try:
            pool = with_autocast(provider.build(case), its_inputs)
            few = its_inputs.first_boxes(4)
            expectation = provider.uses_maps, provider.prepare
            if expectation not in expected:
                expected[expectation] = expect(case, provider, few)
            if provider.has_gradients:
                check(output_and_gradients(pool, few), expected[expectation], few)
            else:
                check([pool(few)], expected[expectation][:1], few)
            pools[provider] = pool
        except Exception as error:  # any error of a provider or of its compiler
            failures[provider] = describe(error)
    for mode in MODES:
        calls: dict[tuple[str, str], Callable[[], Call]] = {}
        for provider, pool in pools.items():
            if mode != "forward" and not provider.has_gradients:
                continue
            calls[provider.name, ""] = partial(make_call, pool, prepared[provider], mode)
            if device.type == "cuda" and not provider.synchronises:
                calls[provider.name, "graph"] = partial(
                    make_replay, pool, prepared[provider], mode, device
                )
        results = measure(calls, device, rounds=setting.rounds)
        yardstick = results.get((YARDSTICK, ""), Measurement())
        for provider, its_inputs in prepared.items():
            if mode != "forward" and not provider.has_gradients:
                continue
            failed = Measurement(failure=failures.get(provider, ""))
            yield make_row(
                setting,
                provider,
                mode,
                least_traffic(case, its_inputs, pixels, mode, uses_maps=provider.uses_maps),
                results.get((provider.name, ""), failed),
                results.get((provider.name, "graph"), Measurement()),
                yardstick.median if yardstick.seconds else None,
            )


def make_row(
    setting: Setting,
    provider: Provider,
    mode: str,
    traffic: int,
    result: Measurement,
    graph: Measurement,
    yardstick: float | None,
) -> Row:
    median = result.median if result.seconds else None
    bandwidth = setting.identity["copy_bytes_per_second"]
    assert isinstance(bandwidth, float)
    return Row(
        case=setting.case.name,
        curve=setting.curve,
        provider=provider.name,
        mode=mode,
        dtype=setting.dtype,
        layout=setting.layout,
        threads=torch.get_num_threads(),
        deterministic=setting.deterministic,
        problem=setting.case.problem(),
        failure=result.failure,
        median_seconds=median,
        fastest_seconds=min(result.seconds, default=None),
        graph_seconds=graph.median if graph.seconds else None,
        graph_failure=graph.failure,
        rounds=len(result.seconds),
        peak_extra_bytes=result.peak_extra_bytes,
        least_traffic_bytes=traffic,
        fraction_of_limit=traffic / bandwidth / median if median else None,
        speedup_over_torchvision=yardstick / median if yardstick and median else None,
        identity=setting.identity,
    )


def with_autocast(pool: Pool, inputs: Inputs) -> Pool:
    """Autocast for half features, as in training: some providers reject float boxes otherwise."""
    features = inputs.features[0]
    if features.dtype == inputs.rois.dtype:
        return pool
    return torch.autocast(features.device.type, features.dtype)(pool)


def check(got: list[Tensor], expected: list[Tensor], inputs: Inputs) -> None:
    """Raises Wrong if the output or a gradient differs. `inputs` determine the tolerance."""
    half_coordinates = inputs.rois.dtype == torch.float16
    tolerance = HALF_COORDINATES if half_coordinates else TOLERANCES[inputs.features[0].dtype]
    names = ["output", *(f"gradient of level {i}" for i in range(len(inputs.features)))]
    names.append("gradient of the maps")
    for name, mine, theirs in zip(names, got, expected, strict=False):
        if mine.shape != theirs.shape:
            raise Wrong(f"{name} has shape {tuple(mine.shape)}, not {tuple(theirs.shape)}")
        largest = theirs.double().abs().max().clamp(min=1e-30)
        error = (mine.double() - theirs.double()).abs().max() / largest
        if not error <= tolerance:
            raise Wrong(f"{name} is off by {error:.1e} of its largest value")


def output_and_gradients(pool: Pool, inputs: Inputs) -> list[Tensor]:
    output = pool(inputs)
    weights = torch.linspace(0.5, 1.5, output.shape[-1], dtype=output.dtype, device=output.device)
    gradients = torch.autograd.grad(
        output,
        inputs.leaves(),
        weights.expand_as(output),
        allow_unused=True,
        materialize_grads=True,
    )
    return [output.detach(), *gradients]


def expect(case: Case, provider: Provider, inputs: Inputs) -> list[Tensor]:
    """Output and gradients; output alone for providers that resize crops."""
    if provider.resizes_crops:
        return [resize_reference(case, inputs)]
    return output_and_gradients(partial(pool_reference, case, provider.uses_maps), inputs)


def pool_reference(case: Case, uses_maps: bool, inputs: Inputs) -> Tensor:
    """Computes in float64; the gradients have the dtypes of ``inputs``."""
    features = [level.double() for level in inputs.features]
    rois = inputs.rois.double()
    levels = level_of_boxes(case, rois[:, 1:])
    prob_maps = inputs.prob_maps.double() if uses_maps else None
    scales = [1 / stride for _, _, stride in case.levels]
    options = check_options(case.bins, scales, case.sampling_ratio, case.aligned, case.map_aligned)
    return reference.pool(features, rois, levels, prob_maps, options)


def resize_reference(case: Case, inputs: Inputs) -> Tensor:
    """Pools each box as a separate image, so that nothing outside of the box is read."""
    pooled = []
    for crop in providers.crops(inputs):
        height, width = crop.shape[1:]
        whole = Inputs([crop[None]], [torch.tensor([[0.0, 0, width, height]])], inputs.prob_maps)
        pooled.append(pool_reference(case, False, whole))
    return torch.cat(pooled)


def choose_cases(suite: Suite, arguments: argparse.Namespace) -> list[Case]:
    if arguments.smoke:
        return [suite.smoke]
    if arguments.curve:
        named = [case for case in suite.cases if case.name in (arguments.case or [])]
        return [each for case in named or suite.cases[:1] for each in curve(case, arguments.curve)]
    if arguments.case:
        return [case for case in suite.cases if case.name in arguments.case]
    kind = torch.device(arguments.device).type
    usual = [case for case in suite.cases if kind in case.devices]
    return usual[:1] if arguments.quick else usual


def choose_providers(suite: Suite, arguments: argparse.Namespace) -> list[Provider]:
    available = suite.providers()
    names = [provider.name for provider in available]
    if unknown := set(arguments.provider or []) - set(names):
        sys.exit(f"no provider {', '.join(sorted(unknown))}; here are: {'; '.join(names)}")
    leave_out_compiled = arguments.quick or arguments.no_compile
    return [
        provider
        for provider in available
        if provider.name in (arguments.provider or names)
        and not (leave_out_compiled and provider.compiles)
    ]


def add_feature_arguments(parser: argparse.ArgumentParser) -> None:
    """--dtype and --layout."""
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        default=["float32"],
        help="dtypes of the features; default: float32",
    )
    parser.add_argument(
        "--layout",
        nargs="+",
        choices=LAYOUTS,
        default=list(LAYOUTS),
        help="memory formats of the features; default: both",
    )


def parse(suite: Suite, argv: Sequence[str] | None) -> argparse.Namespace:
    listing = "\n".join(
        f"  {case.name:<22} {case.source}{WHERE[case.devices]}" for case in suite.cases
    )
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"""Times {suite.name}, forward, backward and both, against its peers.

Every provider must first agree with the float64 reference. Times are medians over rounds; each
round times every provider once. "of limit" is the time of the minimum memory traffic at copy
bandwidth, divided by the measured time. On CUDA, the time after a slash is the replay of a CUDA
graph.
SHAPE_ROI_ALIGN_CPU_CAPABILITY=portable|avx2|avx512 chooses the CPU kernels.""",
        epilog=f"""cases (--quick and --curve use the first):
{listing}

examples:
  --quick                            the first case, in a minute
  --threads 1 2 --case p3_7x7        one case, by number of threads
  --curve boxes --no-compile         {CURVES["boxes"][0]} to {CURVES["boxes"][-1]} boxes
  --dtype float16 bfloat16           half types; float32 alone is the default
  --deterministic off on             the cost of deterministic gradients on CUDA

exit status: 1 if a provider disagrees with the reference, this library fails or nothing ran.
A peer that cannot run a case gets a row with the reason.""",
    )
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default here: %(default)s",
    )
    parser.add_argument(
        "--case",
        nargs="+",
        metavar="NAME",
        choices=[case.name for case in suite.cases],
        help="default: all cases of the device",
    )
    parser.add_argument("--curve", choices=CURVES, default="", help="vary one size of a case")
    parser.add_argument("--provider", nargs="+", metavar="NAME", help="peers to time; default: all")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    add_feature_arguments(parser)
    parser.add_argument(
        "--deterministic",
        nargs="+",
        choices=["off", "on"],
        default=["off"],
        help="torch.use_deterministic_algorithms; default: off",
    )
    parser.add_argument("--threads", nargs="+", type=int, help="CPU threads; default: torch's")
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="let glibc keep freed memory; without this, large results are page-faulted and zeroed",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help="measurements per row; default: 7, on CUDA 30; slow providers get fewer",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one case, at most 5 rounds, nothing to compile"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="one tiny case, to check that everything runs"
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=RESULTS / f"{suite.name}-{stamp}.jsonl",
        metavar="FILE",
        help="JSON lines file to write; default: a new one in benchmarks/results/",
    )
    arguments = parser.parse_args(argv)
    arguments.threads = arguments.threads or [torch.get_num_threads()]
    arguments.modes = [state == "on" for state in arguments.deterministic]
    is_cuda = torch.device(arguments.device).type == "cuda"
    arguments.rounds = arguments.rounds or (30 if is_cuda else 7)
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 5)
    return arguments
