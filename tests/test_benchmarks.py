"""The benchmarks run and time only providers that are correct. Their rows identify provider, case,
machine and time."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision

from benchmark_modules import BENCHMARKS, import_benchmarks

MODES = {"forward", "backward", "forward+backward"}


def run_smoke(bench: SimpleNamespace, output: Path, *, suite: Any = None, options: str = "") -> int:
    command = ["--smoke", "--quick", "--device", "cpu", "--json", str(output), *options.split()]
    return bench.runner.run(suite or bench.runner.ROI_ALIGN, command)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, keep",
    [("bench_roi_align", False), ("bench_few_channels", False), ("bench_multiscale", True)],
)
def test_every_provider_passes_the_gate_and_yields_complete_rows(name, keep, tmp_path):
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--smoke", "--quick", "--device", "cpu"]
    command += ["--dtype", "float32", "float16", "bfloat16", "--json", output]
    command += ["--keep-memory"] if keep else []
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    ours = [row for row in rows if row["provider"] == "shape_roi_align"]
    assert {row["mode"] for row in ours} == MODES
    assert {row["layout"] for row in ours} == {"contiguous", "channels_last"}
    assert {row["dtype"] for row in ours} == {"float32", "float16", "bfloat16"}
    for row in rows:
        assert row["failure"] == ""
        assert row["median_seconds"] >= row["fastest_seconds"] > 0
        assert row["fraction_of_limit"] > 0 and row["speedup_over_torchvision"] > 0
        assert row["threads"] == row["identity"]["threads"] > 0
        known = ("device_kind", "device", "cpu", "capability", "torch", "torchvision", "time")
        assert all(row["identity"][key] for key in known)
        assert isinstance(row["identity"]["dirty"], bool)
        assert row["identity"]["keeps_memory"] is keep
        if row["provider"] == "torchvision, no maps":
            assert row["speedup_over_torchvision"] == 1


@pytest.mark.slow
def test_every_provider_of_mask_pool_passes_the_gate(tmp_path):
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, BENCHMARKS / "bench_mask_pool.py", "--smoke", "--json", output]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert {row["mode"] for row in rows} == {"forward", "forward+backward"}
    assert {"mask_pool", "einsum", "loop", "copies"} <= {row["provider"] for row in rows}
    for row in rows:
        assert row["failure"] == "" and row["provider"] in result.stdout
        assert row["median_seconds"] >= row["fastest_seconds"] > 0
        assert row["identity"]["cpu"] and row["problem"]["masks"] == 6


@pytest.mark.slow
def test_a_provider_of_mask_pool_that_is_wrong_is_an_error(tmp_path, monkeypatch, capsys):
    with import_benchmarks("bench_mask_pool") as modules:
        wrong = {"half": lambda inputs: modules.bench_mask_pool.einsum(inputs) / 2}
        monkeypatch.setattr(modules.bench_mask_pool, "PROVIDERS", wrong)
        command = ["--smoke", "--rounds", "1", "--json", str(tmp_path / "rows.jsonl")]
        assert modules.bench_mask_pool.run(command) == 1
    assert "ERROR: smoke: half: ArithmeticError: off by 5.0e-01" in capsys.readouterr().err


def suite_with(bench: SimpleNamespace, *more: Any) -> Any:
    suite = bench.runner.ROI_ALIGN
    keep = [p for p in suite.providers() if p.name in ("shape_roi_align", "torchvision, no maps")]
    return suite._replace(providers=lambda: [*keep, *more])


@pytest.mark.slow
def test_a_provider_that_computes_something_else_is_an_error(bench, tmp_path, capsys):
    plain = bench.providers.plain(torchvision.ops.RoIAlign)
    wrong = bench.providers.Provider("wrong", True, plain)
    assert run_smoke(bench, tmp_path / "rows.jsonl", suite=suite_with(bench, wrong)) == 1
    captured = capsys.readouterr()
    assert "ERROR: smoke, float32, contiguous: wrong: Wrong: output is off by" in captured.err
    rows = [row for row in bench.report.read_rows(tmp_path / "rows.jsonl") if row.failure]
    assert {row.mode for row in rows} == MODES and {row.provider for row in rows} == {"wrong"}
    assert all(row.median_seconds is None and row.fraction_of_limit is None for row in rows)


@pytest.mark.parametrize("name, status", [("a peer", 0), ("shape_roi_align, broken", 1)])
def test_a_provider_that_cannot_run_is_a_row_that_says_why(bench, tmp_path, capsys, name, status):
    def build(case):
        raise NotImplementedError("no such thing\nat all")

    output = tmp_path / "rows.jsonl"
    broken = bench.providers.Provider(name, True, build)
    assert run_smoke(bench, output, suite=suite_with(bench, broken)) == status
    failures = {row.failure for row in bench.report.read_rows(output) if row.provider == name}
    assert failures == {"NotImplementedError: no such thing"}
    assert f"{name}: failed: NotImplementedError: no such thing" in capsys.readouterr().out


def test_a_provider_that_fails_in_one_mode_only_keeps_the_others(bench, tmp_path):
    """Simulates a backward pass that runs out of memory."""
    build = bench.providers.composition

    def forgetful(case):
        pool, calls = build(case), []

        def run(inputs):
            calls.append(1)
            if len(calls) > 12 and torch.is_grad_enabled():
                raise torch.OutOfMemoryError("out of memory")
            return pool(inputs)

        return run

    output = tmp_path / "rows.jsonl"
    provider = bench.providers.Provider("forgetful", True, forgetful)
    suite = suite_with(bench, provider)
    assert run_smoke(bench, output, suite=suite, options="--layout contiguous --rounds 5000") == 0
    failures = {
        r.mode: r.failure for r in bench.report.read_rows(output) if r.provider == "forgetful"
    }
    assert failures["forward"] == "" and "out of memory" in failures["forward+backward"]


class FakeRoIAlign(torch.nn.Module):
    """Signatures of mmcv's and detectron2's, features read as if contiguous."""

    def __init__(self, output_size, spatial_scale, sampling_ratio, *rest):
        super().__init__()
        assert sampling_ratio >= 0
        aligned = rest[-1]
        if len(rest) == 2:
            assert rest[0] == "avg"
        self.pool = torchvision.ops.RoIAlign(output_size, spatial_scale, sampling_ratio, aligned)

    def forward(self, input, rois):
        assert input.dtype == rois.dtype
        return self.pool(input, rois)


@pytest.mark.slow
@pytest.mark.parametrize(
    "package, module, name",
    [("mmcv", "mmcv.ops", "RoIAlign"), ("detectron2", "detectron2.layers", "ROIAlign")],
)
def test_other_libraries_take_part_where_they_are_installed(
    bench, tmp_path, monkeypatch, package, module, name
):
    def names() -> list[str]:
        return [provider.name for provider in bench.providers.single_level()]

    monkeypatch.setitem(sys.modules, module, None)
    assert f"{package}, no maps" not in names()
    fake = ModuleType(module)
    setattr(fake, name, FakeRoIAlign)
    monkeypatch.setitem(sys.modules, package, ModuleType(package))
    monkeypatch.setitem(sys.modules, module, fake)
    assert f"{package}, no maps" in names()
    output = tmp_path / "rows.jsonl"
    assert run_smoke(bench, output, options="--dtype float32 float16") == 0
    rows = [r for r in bench.report.read_rows(output) if r.provider == f"{package}, no maps"]
    assert {row.dtype for row in rows} == {"float32", "float16"}
    assert all(row.median_seconds for row in rows)


@pytest.mark.parametrize("longest, rounds", [(5.0, 4), (0.0, 3)])
def test_providers_take_turns(bench, monkeypatch, longest, rounds):
    order = []
    calls = {name: lambda name=name: lambda: order.append(name) for name in "abc"}
    monkeypatch.setattr(bench.timing, "SHORTEST_SPAN", 0)
    monkeypatch.setattr(bench.timing, "LONGEST_TOTAL", longest)
    results = bench.timing.measure(calls, torch.device("cpu"), rounds=4)
    # Each turn begins with a call that is not timed.
    assert order[-6 * rounds :] == list("aabbcc") * rounds
    assert all(len(result.seconds) == rounds for result in results.values())


def test_quick_calls_are_timed_in_spans_that_a_clock_can_measure(bench):
    count = [0]

    def call() -> None:
        count[0] += 1

    bench.timing.measure({"": lambda: call}, torch.device("cpu"), rounds=2)
    assert count[0] > 100


def test_peak_memory_counts_what_is_freed_before_the_end_of_the_call(bench):
    size = 2**28

    def call():
        torch.ones(size // 4).sum()
        return torch.ones(size // 4, dtype=torch.uint8)

    torch.ones(size // 2)  # a higher peak, but an earlier one
    peak = bench.timing.peak_extra_bytes(call, torch.device("cpu"))
    if peak is None:
        pytest.skip("needs Linux's /proc/self/clear_refs")
    # Linux counts pages in batches, and counts the pages of other threads too.
    assert 0.95 * size <= peak < 1.5 * size


def test_the_first_error_of_a_chain_is_described(bench):
    try:
        try:
            raise ValueError("the kernel\nfailed")
        finally:
            raise RuntimeError("the capture failed")
    except RuntimeError as error:
        assert bench.timing.describe(error) == "ValueError: the kernel"
    try:
        try:
            raise ValueError("hidden")
        except ValueError:
            raise RuntimeError("meant to be seen") from None
    except RuntimeError as error:
        assert bench.timing.describe(error) == "RuntimeError: meant to be seen"


def test_least_traffic_of_one_box_by_hand(bench):
    case = replace(
        bench.cases.SMOKE, channels=3, num_images=1, boxes_per_image=1, output_size=2, map_size=5
    )
    inputs = bench.cases.make_inputs(
        case,
        dtype=torch.float16,
        device=torch.device("cpu"),
        memory_format=torch.contiguous_format,
    )
    inputs = bench.cases.Inputs(
        inputs.features, [torch.tensor([[16.0, 8.0, 31.0, 47.0]])], inputs.prob_maps
    )
    pixels = bench.cases.pixels_under_boxes(case, inputs)
    assert pixels == 3 * 6  # x 2 to 3.9 and y 1 to 5.9 at stride 8: columns 2..4, rows 1..6
    features, output, maps, boxes = 2 * 3 * 18, 2 * 3 * 4, 2 * 25, 4 * 5
    traffic = {
        (mode, uses_maps): bench.timing.least_traffic(
            case, inputs, pixels, mode, uses_maps=uses_maps
        )
        for mode in MODES
        for uses_maps in (False, True)
    }
    assert traffic["forward", True] == features + maps + boxes + output
    assert traffic["backward", True] == output + boxes + 2 * features + 2 * maps
    assert traffic["backward", False] == output + boxes + features
    assert traffic["forward+backward", False] == 2 * (features + output + boxes)


@pytest.mark.parametrize("name", ["boxes", "channels", "bins"])
def test_a_curve_varies_one_size(bench, name):
    cases = bench.cases.curve(bench.cases.SINGLE_LEVEL[0], name)
    problems = [case.problem() for case in cases]
    assert [problem[name] for problem in problems] == list(bench.cases.CURVES[name])
    for problem in problems:
        del problem[name]
        assert problem["sampling_ratio"] == 2
    if name == "channels":
        problems = [{k: v for k, v in p.items() if k != "levels"} for p in problems]
    assert all(problem == problems[0] for problem in problems)
    assert len({case.name for case in cases}) == len(cases)


def test_names_of_cases_are_unique_and_have_a_source(bench):
    cases = [*bench.cases.SINGLE_LEVEL, *bench.cases.MULTI_SCALE]
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.source for case in cases)


@pytest.mark.parametrize("name, expected", [("abc", ("abc", False)), ("abc+", ("abc", True))])
def test_the_commit_can_be_named_where_there_is_no_repository(bench, monkeypatch, name, expected):
    monkeypatch.setenv("BENCHMARK_COMMIT", name)
    assert bench.report.commit() == expected


def test_a_loop_of_resizes_agrees_with_pooling_each_crop_as_an_image(bench):
    case = replace(bench.cases.SMOKE_FEW_CHANNELS, sampling_ratio=1)
    device = torch.device("cpu")
    loops = {p.name: p for p in bench.providers.single_level() if p.resizes_crops}
    assert "loop of F.interpolate, no maps" in loops
    for provider in loops.values():
        assert not provider.takes(bench.cases.SMOKE_FEW_CHANNELS, torch.float32, device)
        assert provider.takes(case, torch.float32, device)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            given = bench.cases.make_inputs(
                case, dtype=torch.float32, device=device, memory_format=memory_format
            )
            inputs = provider.prepare(given)
            pooled = provider.build(case)(inputs)
            bench.runner.check([pooled], bench.runner.expect(case, provider, inputs), inputs)
            with pytest.raises(bench.runner.Wrong):  # a pixel beside the crop
                shifted = bench.cases.Inputs(
                    inputs.features, [b + 1 for b in inputs.boxes], inputs.prob_maps
                )
                bench.runner.check([pooled], bench.runner.expect(case, provider, shifted), shifted)


@pytest.mark.slow
def test_memory_that_is_kept_is_faster_to_get():
    """In a process of its own, because the allocator's setting is permanent."""
    code = """if True:
        import resource, timing, torch
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.empty(2**27, dtype=torch.uint8).fill_(1)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        print(min(faults() for _ in range(20)))
        timing.keep_freed_memory()
        print(min(faults() for _ in range(20)))
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    given_back, kept = map(int, done.stdout.split())
    assert kept < 2**27 // 2**21 <= given_back  # one for each large page, at least
