"""Compiles the CUDA kernels for the host and runs test cases with them."""

from __future__ import annotations

import os
import shlex
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from calls import Call, assert_matches, to_call
from cases import Case
from oracle import Gradients

HERE = Path(__file__).parent
CSRC = Path(__file__).parents[2] / "csrc"
COMPILER = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or "c++"]
FLAGS = ["-std=c++20", "-O1", "-g1", "-DSHAPE_ROI_ALIGN_CUDA_ON_HOST"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREADS = ("-fsanitize=thread", "-DCUDA_ON_HOST_THREADS")

ORDERS = ("ascending", "descending", "shuffled")
SCALAR_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
F64, F32, F16, BF16 = SCALAR_TYPES


@dataclass(frozen=True)
class Variant:
    """How a case is run: dtypes, memory layout, launch configuration."""

    dtype: torch.dtype
    box_dtype: torch.dtype
    map_dtype: torch.dtype
    layout: str
    threads: int  # per block
    blocks: int  # maximum per grid
    order: str = "ascending"
    wanted_blocks: int = 1  # if there are fewer boxes, several blocks share each box
    far_factor: int = 1  # multiplies every stride other than 1
    scratch: int = 16 << 20  # maximum bytes, unless the requested gradients are larger
    # In the gradient of the features:
    few_channels: int = 32  # with up to so many channels, each lane has one channel
    few_boxes: int = 32  # with up to so many boxes and few tiles, each tile checks all boxes
    # Feature maps of up to so many times the output's elements are copied for the gradients of maps
    # and boxes. The library's default is 6.
    copied: int = 0


@cache
def expected_output(case: Case) -> np.ndarray:
    return case.expected()


@cache
def expected_gradients(case: Case) -> Gradients:
    return case.expected_gradients()


@cache
def folder_of_programs() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="cuda_on_host_")


@cache
def compile_program(source: str, flags: tuple[str, ...]) -> Path:
    """Compiles once per process."""
    program = Path(folder_of_programs().name) / "".join([Path(source).stem, *flags])
    all_flags = [*FLAGS, *WARNINGS, *flags, f"-I{CSRC}", f"-I{HERE}"]
    command = [*COMPILER, *all_flags, str(HERE / source), "-o", str(program)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return program


def kernels_of(program: Path) -> set[str]:
    """All kernels that launch.h can launch, each as `name<template arguments>`."""
    process = subprocess.run([program], capture_output=True, text=True, check=True)
    return set(process.stdout.splitlines())


def channels_last(x: Tensor) -> Tensor:
    """A channels_last copy with default strides, also for dimensions of size 1."""
    copy = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return copy.copy_(x)


def lay_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return channels_last(x)
    if layout == "channels_last_unaligned":  # by one element
        x = channels_last(x)
        storage = x.new_empty(x.numel() + 1)
        return storage.as_strided(x.shape, x.stride(), 1).copy_(x)
    if layout == "sliced":
        return x.repeat(1, 2, 2, 3)[:, ::2, ::2, ::3].copy_(x)
    return x


def bytes_of(tensor: Tensor) -> bytes:
    """The whole storage, in memory order."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy().tobytes()


class JobWriter:
    """Writes the format of runner.cpp: int64, float64, and arrays as their byte count and bytes."""

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

    def elements(self, tensor: Tensor) -> None:
        self.integers(tensor.storage_offset())
        self.optional(tensor)

    def feature_map(self, tensor: Tensor, spatial_scale: float) -> None:
        self.integers(*tensor.stride(), *tensor.shape[2:])
        self.data += struct.pack("d", spatial_scale)


class Job:
    """One case in one variant, for all kernels.

    ``asked``: which gradients to compute; one entry per level, then maps, then boxes.
    """

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
        by_channels = self.variant.layout.startswith("channels_last")
        memory_format = torch.channels_last if by_channels else torch.contiguous_format
        return torch.empty(tensor.shape, dtype=dtype, memory_format=memory_format)

    def pack(self) -> bytes:
        call, variant, to = self.call, self.variant, JobWriter()
        to.array(f"{self.case.name}: {variant}".encode())
        to.integers(variant.threads, variant.blocks, variant.wanted_blocks, variant.scratch)
        to.integers(variant.few_channels, variant.few_boxes, variant.copied)
        to.integers(variant.far_factor)
        to.integers(ORDERS.index(variant.order), len(call.inputs))
        to.integers(*call.inputs[0].shape[:2], len(call.rois))
        to.integers(*map(SCALAR_TYPES.index, (variant.dtype, variant.box_dtype, variant.map_dtype)))
        to.integers(*((0, 0) if call.prob_maps is None else call.prob_maps.shape[1:]))
        spatial_scales, *others = call.options
        to.integers(*others)
        for tensor in (call.rois, call.levels, call.prob_maps):
            to.optional(tensor)
        for x, scale, asked in zip(call.inputs, spatial_scales, self.asked, strict=False):
            to.feature_map(x, scale)
            to.elements(x)
            to.feature_map(self.result_like(x, variant.dtype), scale)
            to.integers(asked)
        to.integers(*self.asked[-2:])
        to.integers(*self.result_like(self.grad, variant.dtype).stride())
        to.integers(*self.grad.stride())
        to.elements(self.grad)
        return bytes(to.data)

    def results(self) -> dict[str, Tensor]:
        """Empty tensors for the results, in the order of runner.cpp."""
        call, variant = self.call, self.variant
        of_maps, of_rois = self.asked[-2:]
        tensors = {"output": self.result_like(self.grad, variant.dtype)}
        for level, x in enumerate(call.inputs):
            if self.asked[level]:
                tensors[f"features {level}"] = self.result_like(x, variant.dtype)
        if of_maps and call.prob_maps is not None:
            tensors["maps"] = torch.empty(call.prob_maps.shape, dtype=variant.map_dtype)
        if of_rois:
            tensors["boxes"] = torch.empty(call.rois.shape, dtype=variant.box_dtype)
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
            precision = computed_in if got.dtype == F64 else got.dtype
            magnitude = 1.0 if name == "output" else max(1.0, np.abs(want).max(initial=0))
            what = f"{self.variant}: {name}"
            assert_matches(got, want, precision, magnitude=magnitude, what=what)


def run(program: Path, jobs: Sequence[Job], folder: Path) -> list[dict[str, Tensor]]:
    return run_and_watch(program, jobs, folder)[0]


def run_and_watch(
    program: Path, jobs: Sequence[Job], folder: Path
) -> tuple[list[dict[str, Tensor]], set[str]]:
    """The jobs' results, and the kernels that were launched."""
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
    return results, set(process.stdout.splitlines())


def kernels_launched_by(program: Path, jobs: Sequence[Job], folder: Path) -> set[str]:
    """The kernels that launch.h would launch for the jobs, without running them."""
    jobs_file = folder / "jobs"
    with jobs_file.open("wb") as file:
        file.write(struct.pack("q", len(jobs)))
        for job in jobs:
            file.write(job.pack())
    process = subprocess.run([program, jobs_file], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return set(process.stdout.splitlines())
