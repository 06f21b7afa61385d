"""Every instance of every CUDA kernel. The sanitizers of scripts/gpu_check.sh run only
test_every_instance_equals_the_oracle.

The code that configures the launches shows on the host which kernels the calls launch; on a GPU,
the profiler shows it. The list of all kernels is read from the compiled library.
"""

from __future__ import annotations

import csv
import itertools
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cases import BY_NAME, CROSSING, INSIDE, NEGATIVE, NOT_FINITE, PYRAMID, Case, make
from host_cuda.jobs import (
    BF16,
    F16,
    F32,
    F64,
    SCALAR_TYPES,
    Job,
    Variant,
    compile_program,
    kernels_launched_by,
    kernels_of,
    lay_out,
)
from shape_roi_align import _library

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"

# Features and boxes. The types of maps go round: all kernels read any of them.
TYPES = ((F64, F64), (F32, F32), (F32, F64), (F16, F32), (F16, F64), (BF16, F32), (BF16, F64))
NAMES = {F64: "f64", F32: "f32", F16: "f16", BF16: "bf16"}
# The gradient of the output is laid out likewise. Unaligned: no vectors.
LAYOUTS = ("contiguous", "channels_last", "channels_last_unaligned")

FEW, SOME, RAGGED = 8, 40, 264  # channels, multiples of all vector widths; RAGGED is two slabs
LARGE = {"sizes": ((130, 131),), "spatial_scales": (1.0,)}  # more tiles than a GPU runs at once

CASES = (
    make("fixed", INSIDE[:2] + CROSSING[2:], channels=FEW, map_aligned=True),
    make("adaptive", INSIDE[:2] + NEGATIVE[:1], channels=SOME, sampling_ratio=-1, aligned=True),
    make("ragged_channels", INSIDE[:1] + CROSSING[1:2], channels=RAGGED, output_size=(2, 2)),
    make("large_map", INSIDE + CROSSING[:1], channels=SOME, **LARGE),
    make("large_map_few_channels", INSIDE + CROSSING[:1], channels=FEW, **LARGE),
    make("pyramid", INSIDE, channels=FEW, **PYRAMID, levels=[2, 0, 1], map_size=None),
    make("not_finite", NOT_FINITE, channels=FEW, sampling_ratio=-1),
    make(
        "many_boxes",
        [(i % 2, i % 7, i % 5, i % 7 + 3, i % 5 + 4) for i in range(1100)],
        channels=FEW,
        output_size=(1, 1),
        sampling_ratio=1,
        map_size=(1, 2),
        on_kinks=True,
    ),
    make(
        "bins_in_several_patches",
        ((0, 21.41, 18.27, 1.13, 0.43),),
        images=1,
        channels=FEW,
        sizes=((19, 23),),
        spatial_scales=(1.0,),
        output_size=(1, 1),
        sampling_ratio=33,
        map_size=(9, 3),
        aligned=True,
    ),
    *(BY_NAME[name] for name in ("no_boxes", "no_images", "no_channels", "no_pixels")),
)


def is_redundant(case: Case, types: tuple[torch.dtype, torch.dtype], layout: str) -> bool:
    if len(case.rois) == 0 or min(x.size for x in case.features) == 0:  # no kernel or few
        return types[0] != F32 or layout != "channels_last"
    # float64 boxes with other features: never uses vectors
    return types[1] == F64 != types[0] and layout == "channels_last_unaligned"


def jobs_of(case: Case, number: int) -> list[Job]:
    """Runs the jobs like StreamLauncher, with the options of launch.h."""
    both = [each for each in itertools.product(TYPES, LAYOUTS) if not is_redundant(case, *each)]
    return [
        Job(
            case,
            Variant(
                *types, SCALAR_TYPES[i % 4], layout, 256, (1 << 31) - 1, wanted_blocks=512, copied=6
            ),
        )
        for i, (types, layout) in enumerate(both, start=number)
    ]


@cache
def all_jobs() -> list[Job]:
    return [job for number, case in enumerate(CASES) for job in jobs_of(case, number)]


def name_of(number: int) -> str:
    job = all_jobs()[number]
    types = (job.variant.dtype, job.variant.box_dtype, job.variant.map_dtype)
    return "-".join([job.case.name, *(NAMES[each] for each in types), job.variant.layout])


def run_on(device: torch.device, job: Job) -> dict[str, Tensor]:
    call, layout = job.call, job.variant.layout

    def move(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device)

    call = replace(
        call,
        inputs=[lay_out(x.to(device), layout) for x in call.inputs],
        rois=call.rois.to(device),
        levels=move(call.levels),
        prob_maps=move(call.prob_maps),
    )
    grad = lay_out(job.grad.to(device), layout)
    results = {"output": call.op()}
    of_levels, of_maps, of_boxes = torch.ops.shape_roi_align._sa_roi_align_backward(
        grad, *call.args(), job.asked
    )
    results |= {f"features {level}": x for level, x in enumerate(of_levels) if job.asked[level]}
    results |= {"maps": of_maps} if job.asked[-2] else {}
    return results | ({"boxes": of_boxes} if job.asked[-1] else {})


@pytest.mark.cuda
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("number", range(len(all_jobs())), ids=name_of)
def test_every_instance_equals_the_oracle(number: int, device: torch.device) -> None:
    job = all_jobs()[number]
    results = run_on(device, job)
    expected = job.results()
    assert results.keys() == expected.keys()
    for name, tensor in results.items():
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape)
    job.check(results)


def short_name(kernel: str) -> str:
    return re.sub(r"\(.*", "", kernel).removeprefix("void ").strip()


def kernels_of_baseline() -> set[str]:
    with (SCRIPTS / "ptxas_baseline.tsv").open(newline="") as file:
        return {row["name"] for row in csv.DictReader(file, delimiter="\t")}


@pytest.mark.cuda
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_the_profiler_sees_every_kernel_of_the_library(device: torch.device) -> None:
    from torch.profiler import ProfilerActivity, profile

    run_on(device, all_jobs()[0])
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for job in all_jobs():
            run_on(device, job)
        torch.cuda.synchronize(device)
    seen = {short_name(event.key) for event in profiler.key_averages()}
    assert {name for name in seen if name.startswith("shape_roi_align::")} == kernels_of_baseline()


@pytest.fixture(scope="module")
def runner() -> Path:
    return compile_program("runner.cpp", ())


@pytest.mark.slow
def test_the_selection_launches_every_kernel(runner: Path, tmp_path: Path) -> None:
    assert kernels_launched_by(runner, all_jobs(), tmp_path) == kernels_of(runner)


@pytest.mark.slow
def test_a_selection_of_one_layout_or_type_misses_kernels(runner: Path, tmp_path: Path) -> None:
    kernels = kernels_of(runner)
    for some in (
        [job for job in all_jobs() if job.variant.layout == "contiguous"],
        [job for job in all_jobs() if job.variant.dtype == F32],
        [job for job in all_jobs() if job.variant.box_dtype == F32],
    ):
        assert kernels_launched_by(runner, some, tmp_path) < kernels


@pytest.mark.slow
def test_the_compiled_library_has_these_kernels_and_no_others(runner: Path) -> None:
    if not _library.CUDA_OPERATORS.exists():
        pytest.skip("needs a build with CUDA")
    try:
        tool = runpy.run_path(str(SCRIPTS / "check_fat_binary.py"))["find_cuobjdump"]()
    except SystemExit as missing:
        pytest.skip(f"needs cuobjdump, of a CUDA toolkit: {missing}")
    command = [tool, "--dump-resource-usage", _library.CUDA_OPERATORS]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mangled = set(re.findall(r"^ *Function (\w+):", listing, re.MULTILINE))
    names = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True).stdout
    assert {short_name(name) for name in names.splitlines()} == kernels_of(runner)


@pytest.mark.slow
def test_the_sanitizers_run_the_whole_selection(tmp_path: Path) -> None:
    script = (SCRIPTS / "gpu_check.sh").read_text()
    (body,) = re.findall(r"^sanitize\(\) \{.*?^\}", script, re.MULTILINE | re.DOTALL)
    (selection,) = re.findall(r"-m pytest (.*?)$", body.replace("\\\n", " "), re.MULTILINE)
    options = [word.strip('"') for word in selection.split()]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    collected = re.findall(r"::test_every_instance_equals_the_oracle\[", run.stdout)
    assert len(collected) == len(all_jobs()), run.stdout + run.stderr
