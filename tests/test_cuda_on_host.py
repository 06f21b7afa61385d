"""The CUDA kernels' own source, compiled for the host and run under sanitizers, equals the oracle.

host_cuda/cuda_on_host.h supplies what CUDA would: thread indices, shared memory, barriers, atomics. host_cuda/runner.cpp launches the
kernels as csrc/cuda/launch.h configures them. Needs a C++20 compiler, neither CUDA nor a GPU.
"""

from __future__ import annotations

import itertools
import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import Call, assert_matches, to_call
from cases import BY_NAME, CASES, INSIDE, PYRAMID, Case, make
from oracle import Gradients
from torch import Tensor

HERE = Path(__file__).parent / "host_cuda"
CSRC = Path(__file__).parents[1] / "csrc"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
FLAGS = "-std=c++20 -O1 -g1 -Wall -Wextra -Werror -Wno-unknown-pragmas -DSHAPE_ROI_ALIGN_CUDA_ON_HOST".split()
ADDRESS = "-fsanitize=address,undefined -fno-sanitize-recover=all".split()
THREADS = "-fsanitize=thread -DCUDA_ON_HOST_THREADS".split()

ORDERS = ("ascending", "descending", "shuffled")
SCALAR_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
F64, F32, F16, BF16 = SCALAR_TYPES


@dataclass(frozen=True)
class Variant:
    """How a case is run: types, memory layout, launch configuration."""

    dtype: torch.dtype
    box_dtype: torch.dtype
    map_dtype: torch.dtype
    layout: str
    threads: int  # of a block, at most
    blocks: int  # of a grid, at most
    order: str = "ascending"

    @property
    def coordinate_dtype(self) -> torch.dtype:
        return F64 if F64 in (self.dtype, self.box_dtype) else F32

    @property
    def accumulate_dtype(self) -> torch.dtype:
        return F64 if self.dtype == F64 else F32


VARIANTS = (
    Variant(F64, F64, F64, "contiguous", 256, 1 << 20),
    Variant(F64, F32, F16, "channels_last", 37, 3, "shuffled"),
    Variant(F32, F32, F32, "channels_last", 64, 1 << 20, "descending"),
    Variant(F32, F32, F32, "contiguous", 1, 2),
    Variant(F32, F64, BF16, "sliced", 96, 5, "shuffled"),
    Variant(F16, F32, F64, "contiguous", 50, 1 << 20, "descending"),
    Variant(F16, F64, F16, "channels_last", 128, 7),
    Variant(BF16, F32, BF16, "channels_last", 33, 1 << 20, "shuffled"),
    Variant(BF16, F64, F32, "contiguous", 64, 2, "descending"),
)

MANY_PIXELS = (
    make("bin_of_more_pixels_than_entries", ((0, 0.88, 0.81, 44.84, 42.52),), images=1, sizes=((45, 47),),
         spatial_scales=(1.0,), output_size=(1, 2), sampling_ratio=-1),
    make("more_samples_than_threads", ((0, -3.1, 1.2, 60.3, 50.9),), images=1, sizes=((21, 40),),
         spatial_scales=(0.7,), output_size=(3, 2), sampling_ratio=13, map_size=(9, 3), map_aligned=True),
)  # fmt: skip


@cache
def expected_output(case: Case) -> np.ndarray:
    return case.expected()


@cache
def expected_gradients(case: Case) -> Gradients:
    return case.expected_gradients()


def compile_program(source: str, flags: Sequence[str], folder: Path) -> Path:
    if COMPILER is None:
        pytest.fail("no C++ compiler: set CXX")
    program = folder / Path(source).stem
    command = [COMPILER, *FLAGS, *flags, f"-I{CSRC}", f"-I{HERE}", HERE / source, "-o", program]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return program


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program("runner.cpp", ADDRESS, tmp_path_factory.mktemp("cuda_on_host"))


@pytest.fixture(scope="session")
def racing_runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program("runner.cpp", THREADS, tmp_path_factory.mktemp("cuda_on_host_threads"))


def lay_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return x.repeat(1, 2, 2, 3)[:, ::2, ::2, ::3].copy_(x)
    return x


def bytes_of(tensor: Tensor) -> bytes:
    """All of its storage, in the order of memory."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy().tobytes()


class JobWriter:
    """The binary form that runner.cpp reads: int64 and float64, arrays as their size in bytes and the bytes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def integers(self, *values: int) -> None:
        self.data += struct.pack(f"{len(values)}q", *values)

    def array(self, data: bytes) -> None:
        self.integers(len(data))
        self.data += data

    def optional(self, tensor: Tensor | None) -> None:
        self.integers(tensor is not None)
        if tensor is not None:
            self.array(bytes_of(tensor))

    def feature_map(self, tensor: Tensor, spatial_scale: float) -> None:
        self.integers(*tensor.stride(), *tensor.shape[2:])
        self.data += struct.pack("d", spatial_scale)


class Job:
    """One case run one way by all kernels. ``asked``: which gradients, of each level, of the maps, of the boxes."""

    def __init__(self, case: Case, variant: Variant, asked: Sequence[bool] | None = None) -> None:
        self.case = case
        self.variant = variant
        self.call: Call = to_call(
            case, dtype=variant.dtype, map_dtype=variant.map_dtype, box_dtype=variant.box_dtype
        ).with_inputs(lambda x: lay_out(x, variant.layout))
        self.grad = lay_out(torch.tensor(case.grad, dtype=variant.dtype), variant.layout)
        *of_levels, of_maps, of_rois = asked or [True] * (len(self.call.inputs) + 2)
        self.asked = [*of_levels, of_maps and self.call.prob_maps is not None, of_rois]

    def result_like(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        channels_last = self.variant.layout == "channels_last"
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(tensor.shape, dtype=dtype, memory_format=memory_format)

    def pack(self) -> bytes:
        call, variant, to = self.call, self.variant, JobWriter()
        to.array(f"{self.case.name}: {variant}".encode())
        to.integers(variant.threads, variant.blocks, ORDERS.index(variant.order), len(call.inputs))
        to.integers(*call.inputs[0].shape[:2], len(call.rois))
        to.integers(*map(SCALAR_TYPES.index, (variant.dtype, variant.box_dtype, variant.map_dtype)))
        to.integers(*((0, 0) if call.prob_maps is None else call.prob_maps.shape[1:]))
        to.integers(*call.output_size, call.sampling_ratio, call.aligned, call.map_aligned)
        for tensor in (call.rois, call.levels, call.prob_maps):
            to.optional(tensor)
        for x, scale, asked in zip(call.inputs, call.spatial_scales, self.asked, strict=False):
            to.feature_map(x, scale)
            to.optional(x)
            to.feature_map(self.result_like(x, variant.dtype), scale)
            to.integers(asked)
        to.integers(*self.asked[-2:])
        to.integers(*self.result_like(self.grad, variant.dtype).stride(), *self.grad.stride())
        to.optional(self.grad)
        return bytes(to.data)

    def results(self) -> dict[str, Tensor]:
        """Empty tensors for what runner.cpp writes, in its order."""
        call, variant = self.call, self.variant
        of_maps, of_rois = self.asked[-2:]
        tensors = {"output": self.result_like(self.grad, variant.dtype)}
        for level, x in enumerate(call.inputs):
            if self.asked[level]:
                tensors[f"scattered {level}"] = self.result_like(x, variant.accumulate_dtype)
                tensors[f"gathered {level}"] = self.result_like(x, variant.dtype)
        if of_maps and call.prob_maps is not None:
            tensors["maps"] = torch.empty(call.prob_maps.shape, dtype=variant.coordinate_dtype)
        if of_rois:
            tensors["boxes"] = torch.empty(call.rois.shape, dtype=variant.coordinate_dtype)
        return tensors

    def expected(self, name: str) -> np.ndarray:
        gradients = expected_gradients(self.case)
        kind, *level = name.split()
        if kind == "output":
            return expected_output(self.case)
        if kind == "maps":
            assert gradients.prob_maps is not None
            return gradients.prob_maps
        return gradients.rois if kind == "boxes" else gradients.features[int(level[0])]

    def check(self, results: dict[str, Tensor]) -> None:
        computed_in = F64 if self.variant.dtype == self.variant.box_dtype == F64 else F32
        for name, got in results.items():
            want = self.expected(name)
            precision = got.dtype if got.dtype in (F16, BF16) else computed_in
            magnitude = 1.0 if name == "output" else max(1.0, np.abs(want).max(initial=0))
            what = f"{self.variant}: {name}"
            assert_matches(got, want, precision, magnitude=magnitude, what=what)


def run(program: Path, jobs: Sequence[Job], folder: Path) -> list[dict[str, Tensor]]:
    jobs_file, results_file = folder / "jobs", folder / "results"
    jobs_file.write_bytes(struct.pack("q", len(jobs)) + b"".join(job.pack() for job in jobs))
    process = subprocess.run([program, jobs_file, results_file], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    data = memoryview(bytearray(results_file.read_bytes()))
    results = [job.results() for job in jobs]
    for tensor in (tensor for of_job in results for tensor in of_job.values()):
        flat = tensor.as_strided((tensor.numel(),), (1,))
        size = flat.numel() * flat.element_size()
        if size > 0:
            flat.copy_(torch.frombuffer(data[:size], dtype=tensor.dtype))
        data = data[size:]
    assert not data
    return results


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES + MANY_PIXELS, ids=repr)
def test_kernels_equal_the_oracle(case: Case, runner: Path, tmp_path: Path) -> None:
    jobs = [Job(case, variant) for variant in VARIANTS]
    for job, results in zip(jobs, run(runner, jobs, tmp_path), strict=True):
        job.check(results)


@pytest.mark.parametrize("name", ["legacy-map_literal-s2", "crossing_adaptive", "pyramid_no_map"])
def test_kernels_have_no_data_race(name: str, racing_runner: Path, tmp_path: Path) -> None:
    jobs = [
        Job(BY_NAME[name], Variant(dtype, F32, F32, layout, threads, 4))
        for dtype, layout, threads in ((F32, "contiguous", 16), (F16, "channels_last", 7))
    ]
    for job, results in zip(jobs, run(racing_runner, jobs, tmp_path), strict=True):
        job.check(results)


@pytest.mark.parametrize("name", ["legacy-map_literal-s2", "no_map", "pyramid"])
def test_only_the_gradients_asked_for_are_computed(
    name: str, runner: Path, racing_runner: Path, tmp_path: Path
) -> None:
    case = BY_NAME[name]
    jobs = [
        Job(case, Variant(F32, F32, F32, "contiguous", 16, 3), mask)
        for mask in itertools.product((False, True), repeat=len(case.features) + 2)
    ]
    for program in (runner, racing_runner):
        for job, results in zip(jobs, run(program, jobs, tmp_path), strict=True):
            job.check(results)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
def test_all_but_the_scattered_gradient_is_reproducible(
    dtype: torch.dtype, runner: Path, tmp_path: Path
) -> None:
    """Whatever the order in which threads run, and however many blocks there are."""
    case = BY_NAME["boxes_overlap_wholly"]
    jobs = [
        Job(case, Variant(dtype, F32, F32, "contiguous", 64, blocks, order))
        for order, blocks in zip(ORDERS, (1, 5, 1 << 20), strict=True)
    ]
    results = run(runner, jobs, tmp_path)
    for of_job in results:
        del of_job["scattered 0"]
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("what", ["batch index", "level"])
@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[2]], ids=["f64", "f32"])
def test_boxes_out_of_range_are_zero_and_get_no_gradient(
    what: str, variant: Variant, runner: Path, tmp_path: Path
) -> None:
    """As if they were not there: no synchronisation reports them on CUDA."""
    case = make("out_of_range", INSIDE * 2, **PYRAMID, levels=[0, 1, 2] * 2)
    bad = [1, 4, 5]
    good = [0, 2, 3]
    job = Job(case, variant)
    if what == "level":
        assert job.call.levels is not None
        job.call.levels[bad] = torch.tensor([-1, 3, 2**62])
    else:
        job.call.rois[bad, 0] = torch.tensor([-1, 2, float("nan")], dtype=variant.box_dtype)
    assert case.levels is not None and case.prob_maps is not None
    without = Job(
        replace(
            case,
            rois=case.rois[good],
            levels=case.levels[good],
            prob_maps=case.prob_maps[good],
            grad=case.grad[good],
        ),
        variant,
    )
    results, expected = run(runner, [job, without], tmp_path)
    for name, got in results.items():
        if name in ("output", "maps", "boxes"):
            torch.testing.assert_close(got[good], expected[name], rtol=0, atol=0)
            assert not got[bad].any()
        else:
            torch.testing.assert_close(got, expected[name])


def test_pixels_that_no_sample_reads_do_not_matter(runner: Path, tmp_path: Path) -> None:
    """Two samples per bin, many pixels apart, in an image that is NaN elsewhere."""
    case = make("sparse", ((0, 1.2, 1.2, 41.2, 41.2),), images=1, sizes=((45, 45),),
                spatial_scales=(1.0,), output_size=(1, 2), sampling_ratio=2)  # fmt: skip
    touched = case.expected_gradients().features[0] != 0
    poisoned = replace(case, features=(np.where(touched.any((0, 1)), case.features[0], np.nan),))
    jobs = [Job(case, VARIANTS[0]), Job(poisoned, VARIANTS[0])]
    results = run(runner, jobs, tmp_path)
    assert_same_bits(*results)
    jobs[0].check(results[0])


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program("toys.cpp", ADDRESS, tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="session")
def racing_toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program("toys.cpp", THREADS, tmp_path_factory.mktemp("racing_toys"))


@pytest.mark.parametrize(
    ("toy", "symptom"),
    [
        ("right", "ok"),
        ("syncthreads_or", "ok"),
        ("atomic_add", "ok"),
        ("no_barrier", "wrong result"),
        ("overrun", "insufficient space"),
        ("overrun_by_function", "global-buffer-overflow"),
        ("some_return", "some threads of a block return, others wait"),
        ("different_barriers", "threads of a block wait at different barriers"),
    ],
)
def test_the_host_finds_faults_of_kernels(toy: str, symptom: str, toys: Path) -> None:
    process = subprocess.run([toys, toy], capture_output=True, text=True)
    assert symptom in process.stdout + process.stderr


@pytest.mark.parametrize(
    ("toy", "symptom"),
    [
        ("right", "ok"),
        ("syncthreads_or", "ok"),
        ("atomic_add", "ok"),
        ("no_barrier", "data race"),
        ("some_return", "some threads of a block return, others wait"),
        ("different_barriers", "threads of a block wait at different barriers"),
    ],
)
def test_the_host_finds_faults_of_kernels_on_threads(
    toy: str, symptom: str, racing_toys: Path
) -> None:
    process = subprocess.run([racing_toys, toy], capture_output=True, text=True)
    assert symptom in process.stdout + process.stderr
