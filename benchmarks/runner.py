"""The command line of the benchmarks: gate every provider, time those that pass, report."""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from cases import Case, Inputs, first_boxes, level_of_boxes, make_inputs
from providers import Provider
from report import RESULTS, Row, describe_run, format_table, write_rows
from shape_roi_align.reference import pool_levels
from timing import MODES, copy_bandwidth, least_traffic, make_call, measure

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

# Largest error allowed, relative to the largest value: a provider may sum in the features' own
# type, over up to a few hundred terms.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def run(
    name: str,
    cases: Sequence[Case],
    providers: Sequence[Provider],
    smoke: Case,
    argv: Sequence[str] | None = None,
) -> int:
    arguments = parse(name, cases, argv)
    device = torch.device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.quick:
        cases, providers = cases[:1], [p for p in providers if not p.slow_to_start]
        arguments.rounds = min(arguments.rounds, 5)
    cases = (
        [smoke] if arguments.smoke else [c for c in cases if c.name in (arguments.case or c.name)]
    )
    bandwidth = copy_bandwidth(device)
    identity = describe_run(device, bandwidth)
    rows: list[Row] = []
    plan = list(product(cases, arguments.dtype, arguments.layout))
    for case, dtype, layout in tqdm(plan, disable=None, desc=name):
        inputs = make_inputs(
            case, dtype=DTYPES[dtype], device=device, memory_format=LAYOUTS[layout]
        )
        pools = admit(case, providers, inputs)
        for mode in MODES:
            calls = {p.name: make_call(pool, inputs, mode) for p, pool in pools.items()}
            measurements = measure(calls, device, rounds=arguments.rounds)
            for provider in pools:
                traffic = least_traffic(case, inputs, mode, uses_maps=provider.uses_maps)
                result = measurements[provider.name]
                rows.append(
                    Row(
                        case=case.name,
                        provider=provider.name,
                        mode=mode,
                        dtype=dtype,
                        layout=layout,
                        median_seconds=result.median,
                        fastest_seconds=min(result.seconds),
                        rounds=arguments.rounds,
                        peak_extra_bytes=result.peak_extra_bytes,
                        least_traffic_bytes=traffic,
                        fraction_of_limit=traffic / bandwidth / result.median,
                        identity=identity,
                    )
                )
    write_rows(rows, arguments.json)
    print(format_table(rows))
    print(f"{len(rows)} rows in {arguments.json}; copy bandwidth {bandwidth / 1e9:.1f} GB/s")
    return 0 if rows else 1


def admit(
    case: Case, providers: Sequence[Provider], inputs: Inputs
) -> dict[Provider, Callable[[Inputs], Tensor]]:
    """The providers that can do the case and agree with the reference; says who cannot and why."""
    admitted = {}
    for provider in providers:
        if provider.fixed_sampling_only and case.sampling_ratio <= 0:
            continue
        pool = with_autocast(provider.build(case), inputs)
        try:
            disagreement = find_disagreement(case, provider, pool, first_boxes(inputs, 8))
        except RuntimeError as error:
            disagreement = str(error).splitlines()[0]
        if disagreement:
            print(f"{case.name}: {provider.name} is left out: {disagreement}", file=sys.stderr)
        else:
            admitted[provider] = pool
    return admitted


def with_autocast(pool: Callable[[Inputs], Tensor], inputs: Inputs) -> Callable[[Inputs], Tensor]:
    """Half types run under autocast, as in training: some refuse half features and float boxes."""
    features = inputs.features[0]
    if features.dtype == torch.float32:
        return pool
    return torch.autocast(features.device.type, features.dtype)(pool)


def find_disagreement(
    case: Case, provider: Provider, pool: Callable[[Inputs], Tensor], inputs: Inputs
) -> str:
    """What is wrong with the provider's output or gradients; "" if nothing is."""
    dtype = inputs.features[0].dtype
    expected = output_and_gradients(partial(reference, case, provider), inputs)
    got = output_and_gradients(pool, inputs)
    names = ["output", *(f"gradient of level {i}" for i in range(len(case.levels)))]
    names.append("gradient of the maps")
    for name, mine, theirs in zip(names, got, expected, strict=True):
        error = (mine.double() - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)
        if not error <= TOLERANCES[dtype]:
            return f"its {name} is off by {error:.1e} of the largest value"
    return ""


def output_and_gradients(pool: Callable[[Inputs], Tensor], inputs: Inputs) -> list[Tensor]:
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


def reference(case: Case, provider: Provider, inputs: Inputs) -> Tensor:
    """In float64, with gradients of the inputs as they are."""
    rois = inputs.rois.double()
    return pool_levels(
        [level.double() for level in inputs.features],
        rois,
        level_of_boxes(case, rois[:, 1:]),
        inputs.prob_maps.double() if provider.uses_maps else None,
        [1 / stride for _, _, stride in case.levels],
        (case.output_size, case.output_size),
        case.sampling_ratio,
        case.aligned,
        case.map_aligned,
    )


def parse(name: str, cases: Sequence[Case], argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=f"Times {name}.",
        epilog="cases: " + "; ".join(f"{case.name} ({case.source})" for case in cases),
    )
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--case", nargs="+", choices=[case.name for case in cases])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each provider")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument(
        "--quick", action="store_true", help="the first case, 5 rounds, nothing to compile"
    )
    parser.add_argument("--smoke", action="store_true", help="one tiny case: does it run at all?")
    parser.add_argument("--json", type=Path, default=RESULTS / f"{name}-{stamp}.jsonl")
    return parser.parse_args(argv)
