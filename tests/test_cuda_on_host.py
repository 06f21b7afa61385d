"""The CUDA kernels' own source, compiled for the host and run under sanitizers, equals the oracle.

host_cuda/cuda_on_host.h replaces CUDA: threads, shared memory, barriers, shuffles.
host_cuda/runner.cpp launches the kernels as csrc/cuda/launch.h configures them. Needs a C++20
compiler with sanitizers, neither CUDA nor a GPU.
"""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cases import BY_NAME, CASES, INSIDE, PYRAMID, make
from host_cuda.jobs import (
    ADDRESS,
    BF16,
    F16,
    F32,
    F64,
    ORDERS,
    THREADS,
    Job,
    Variant,
    compile_program,
    run,
)

pytestmark = pytest.mark.slow

ALWAYS = 1 << 20  # Variant.copied
VARIANTS = (
    Variant(F64, F64, F64, "contiguous", 256, 1 << 20, few_boxes=0),
    Variant(F64, F32, F16, "channels_last", 96, 3, "shuffled", wanted_blocks=30),
    Variant(F32, F32, F32, "channels_last", 64, 1 << 20, "descending"),
    Variant(F32, F32, F32, "contiguous", 32, 2, wanted_blocks=512, few_boxes=0, copied=ALWAYS),
    Variant(F32, F32, F64, "channels_last_unaligned", 64, 5, "shuffled"),
    Variant(F32, F64, BF16, "sliced", 96, 5, "shuffled", wanted_blocks=30, copied=ALWAYS),
    Variant(F16, F32, F64, "contiguous", 64, 1 << 20, "descending"),
    Variant(F16, F64, F16, "channels_last", 128, 7),
    Variant(F16, F32, F16, "channels_last", 256, 1 << 20, wanted_blocks=512),
    Variant(BF16, F32, BF16, "channels_last", 32, 1 << 20, "shuffled"),
    Variant(BF16, F64, F32, "contiguous", 64, 2, "descending"),
)

# More than a block processes at a time.
CHUNKED = (
    make(
        "bin_of_more_pixels_than_a_patch_has",
        ((0, 0.88, 0.81, 44.84, 42.52),),
        images=1,
        sizes=((45, 47),),
        spatial_scales=(1.0,),
        output_size=(1, 2),
        sampling_ratio=-1,
    ),
    make(
        "bin_of_more_samples_than_a_patch_has",
        ((0, -3.1, 1.2, 60.3, 50.9), (0, 50.9, 60.3, 1.2, -3.1)),
        images=1,
        channels=24,
        sizes=((21, 40),),
        spatial_scales=(0.7,),
        output_size=(3, 2),
        sampling_ratio=37,
        map_size=(9, 3),
        aligned=True,
        map_aligned=True,
    ),
    make(
        "bin_shared_by_warps",
        ((0, 1.13, 0.43, 38.41, 35.27), (0, 38.41, 35.27, 1.13, 0.43)),
        images=1,
        channels=264,
        sizes=((37, 40),),
        spatial_scales=(1.0,),
        output_size=(2, 2),
        sampling_ratio=17,
        aligned=True,
    ),
    make("bins_in_several_patches", INSIDE, channels=8, output_size=(14, 13), map_size=(28, 28)),
    make("pixels_of_more_taps_than_fit", INSIDE[:1] * 3, channels=8, output_size=(9, 40)),
    *(make(f"channels_{n}_of_vectors", INSIDE[1:], channels=n) for n in (5, 96, 520)),
)

# More boxes over one tile than a block processes at a time. Several have all their bins in a
# pixel, next to pixels that few bins read.
CROWDED = make(
    "crowded",
    [
        (k % 2, x, y, x + size, y + size)
        for k, (x, y) in enumerate(np.random.default_rng(1).uniform(0.1, 6, (77, 2)))
        for size in ((0.8, 1.7, 3.3)[k % 3],)
    ],
    channels=24,
    sizes=((7, 9),),
    spatial_scales=(1.0,),
    output_size=(7, 6),
    sampling_ratio=2,
)
CHUNKED += (CROWDED,)

NAMES = [case.name for case in CASES + CHUNKED]


@pytest.fixture(scope="session")
def runner() -> Path:
    return compile_program("runner.cpp", ADDRESS)


@pytest.fixture(scope="session")
def racing_runner() -> Path:
    return compile_program("runner.cpp", THREADS)


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


@pytest.mark.parametrize("number", range(len(CASES + CHUNKED)), ids=lambda i: NAMES[i])
def test_kernels_equal_the_oracle(number: int, runner: Path, tmp_path: Path) -> None:
    """Each case in two variants, in turn: test_cuda_coverage.py runs all kernels."""
    case = (CASES + CHUNKED)[number]
    jobs = [Job(case, VARIANTS[(number + i) % len(VARIANTS)]) for i in (0, 4)]
    for job, results in zip(jobs, run(runner, jobs, tmp_path), strict=True):
        job.check(results)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_scale_beyond_the_coordinates_type_leaves_zeros(
    layout: str, runner: Path, tmp_path: Path
) -> None:
    """The scale is infinite in float32, so no box is finite."""
    case = make("scale_beyond_float32", INSIDE, channels=8, spatial_scales=(1e308,))
    job = Job(case, Variant(F32, F32, F32, layout, 32, 1 << 20))
    (results,) = run(runner, [job], tmp_path)
    assert set(results) == {"output", "features 0", "maps", "boxes"}
    for result in results.values():
        assert torch.equal(result, torch.zeros_like(result))


def random_job(seed: int) -> Job:
    rng = np.random.default_rng(seed)

    def size(most: int) -> tuple[int, int]:
        return int(rng.integers(1, most + 1)), int(rng.integers(1, most + 1))

    sizes = tuple(size(12) for _ in range(rng.integers(1, 3, endpoint=True)))
    corners = rng.uniform(-10, 30, (rng.integers(1, 7), 2, 2))
    corners = corners if seed % 4 == 0 else np.sort(corners, axis=1)
    images = rng.integers(0, 2, (len(corners), 1))
    case = make(
        f"random {seed}",
        np.hstack([images, corners.reshape(-1, 4)]),
        channels=int(rng.integers(1, 20)),
        sizes=sizes,
        spatial_scales=tuple(rng.uniform(0.1, 1.1, len(sizes))),
        levels=rng.integers(0, len(sizes), len(corners)).tolist(),
        map_size=None if seed % 5 == 0 else size(9),
        output_size=size(4),
        sampling_ratio=int(rng.integers(-1, 5)),
        aligned=bool(rng.integers(2)),
        map_aligned=bool(rng.integers(2)),
    )
    layout = str(rng.choice(["contiguous", "channels_last", "channels_last_unaligned", "sliced"]))
    order = str(rng.choice(ORDERS))
    warps, blocks, wanted_blocks = (int(n) for n in rng.integers(1, (4, 9, 40)))
    variant = Variant(F64, F64, F64, layout, 32 * warps, blocks, order)
    variant = replace(variant, wanted_blocks=wanted_blocks, few_boxes=seed % 2 * 32)
    return Job(case, replace(variant, copied=seed // 2 % 2 * ALWAYS))


@pytest.mark.parametrize("batch", range(4))
def test_kernels_equal_the_oracle_on_random_calls(batch: int, runner: Path, tmp_path: Path) -> None:
    jobs = [random_job(seed) for seed in range(20 * batch, 20 * (batch + 1))]
    for job, results in zip(jobs, run(runner, jobs, tmp_path), strict=True):
        job.check(results)


@pytest.mark.parametrize(
    "name",
    ["legacy-map_literal-s2", "crossing_adaptive", "channels_16", "pyramid_no_map", "crowded"],
)
def test_kernels_have_no_data_race(name: str, racing_runner: Path, tmp_path: Path) -> None:
    case = {**BY_NAME, CROWDED.name: CROWDED}[name]
    variants = [
        (F32, "contiguous", 64, 1, 0),
        (F16, "channels_last", 96, 1, 0),
        (F32, "channels_last", 64, 512, 0),  # tiles look at all boxes
    ]
    if name == "channels_16":
        variants.append((F16, "contiguous", 96, 1, ALWAYS))
    jobs = [
        Job(
            case,
            Variant(
                dtype, F32, F32, layout, threads, 4, wanted_blocks=n, few_boxes=100, copied=copied
            ),
        )
        for dtype, layout, threads, n, copied in variants
    ]
    for job, results in zip(jobs, run(racing_runner, jobs, tmp_path), strict=True):
        job.check(results)


@pytest.mark.parametrize("name", ["legacy-map_literal-s2", "no_map", "pyramid"])
def test_only_the_gradients_asked_for_are_computed(
    name: str, runner: Path, racing_runner: Path, tmp_path: Path
) -> None:
    case = BY_NAME[name]
    jobs = [
        Job(case, Variant(F32, F32, F32, "contiguous", 64, 3), mask)
        for mask in itertools.product((False, True), repeat=len(case.features) + 2)
    ]
    for program, some in ((runner, jobs), (racing_runner, jobs[1::6])):
        for job, results in zip(some, run(program, some, tmp_path), strict=True):
            job.check(results)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
def test_results_are_reproducible(
    dtype: torch.dtype, layout: str, runner: Path, tmp_path: Path
) -> None:
    """The results do not depend on the order of threads or the number of blocks."""
    case = BY_NAME["boxes_overlap_wholly"]
    jobs = [
        Job(case, Variant(dtype, F32, F32, layout, 64, blocks, order))
        for order, blocks in zip(ORDERS, (1, 5, 1 << 20), strict=True)
    ]
    results = run(runner, jobs, tmp_path)
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["channels_16", "crossing_adaptive", "bin_shared_by_warps"])
def test_outputs_do_not_depend_on_how_boxes_are_shared_among_blocks(
    name: str, layout: str, runner: Path, tmp_path: Path
) -> None:
    case = {case.name: case for case in CASES + CHUNKED}[name]
    jobs = [
        Job(case, Variant(F32, F32, F32, layout, 96, 1 << 20, wanted_blocks=n))
        for n in (1, 17, 512)
    ]
    first, *others = [results["output"] for results in run(runner, jobs, tmp_path)]
    for other in others:
        assert torch.equal(first, other)


@pytest.mark.parametrize("what", ["batch index", "level"])
@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[2]], ids=["f64", "f32"])
def test_boxes_out_of_range_are_zero_and_get_no_gradient(
    what: str, variant: Variant, runner: Path, tmp_path: Path
) -> None:
    """These boxes are ignored: on CUDA, reporting them would need a synchronisation."""
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
    case = make(
        "sparse",
        ((0, 1.2, 1.2, 41.2, 41.2),),
        images=1,
        sizes=((45, 45),),
        spatial_scales=(1.0,),
        output_size=(1, 2),
        sampling_ratio=2,
    )
    touched = case.expected_gradients().features[0] != 0
    poisoned = replace(case, features=(np.where(touched.any((0, 1)), case.features[0], np.nan),))
    jobs = [Job(case, VARIANTS[0]), Job(poisoned, VARIANTS[0])]
    results = run(runner, jobs, tmp_path)
    assert_same_bits(*results)
    jobs[0].check(results[0])


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(F64, "contiguous"), (F32, "channels_last"), (F16, "channels_last"), (BF16, "contiguous")],
)
def test_gradients_that_are_not_finite_stay_in_the_pixels_of_their_bin(
    dtype: torch.dtype, layout: str, value: float, runner: Path, tmp_path: Path
) -> None:
    """A thread that has no tap in a step keeps what it loaded before, and must not use it."""
    bins = ((3, 5, 1), (70, 2, 4))
    grad = CROWDED.grad.copy()
    of_bins = np.zeros_like(grad)
    for k, ph, pw in bins:
        grad[k, :, ph, pw] = value
        of_bins[k, :, ph, pw] = 1
    touched = replace(CROWDED, grad=of_bins).expected_gradients().features[0] != 0
    assert 0 < touched.sum() < touched.size / 4
    variant = Variant(dtype, F32, F32, layout, 256, 1 << 20)
    jobs = [Job(replace(CROWDED, grad=g), variant) for g in (CROWDED.grad, grad)]
    expected, got = (
        result["features 0"].double().numpy() for result in run(runner, jobs, tmp_path)
    )
    assert not np.isfinite(got[touched]).any()
    assert np.array_equal(got[~touched], expected[~touched])


@pytest.fixture(scope="session")
def toys() -> Path:
    return compile_program("toys.cpp", ADDRESS)


@pytest.fixture(scope="session")
def racing_toys() -> Path:
    return compile_program("toys.cpp", THREADS)


@pytest.mark.parametrize(
    ("toy", "symptom"),
    [
        ("right", "ok"),
        ("syncthreads_or", "ok"),
        ("shuffle", "ok"),
        ("scan", "ok"),
        ("ballot", "ok"),
        ("atomics", "ok"),
        ("aligned_vector", "ok"),
        ("no_barrier", "wrong result"),
        ("no_warp_barrier", "wrong result"),
        ("not_written", "wrong result"),
        ("unaligned_vector", "misaligned address"),
        ("shuffle_of_some_lanes", "threads wait at different barriers"),
        ("overrun", "insufficient space"),
        ("overrun_by_function", "global-buffer-overflow"),
        ("some_return", "some threads return, others wait"),
        ("different_barriers", "threads wait at different barriers"),
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
        ("shuffle", "ok"),
        ("scan", "ok"),
        ("ballot", "ok"),
        ("atomics", "ok"),
        ("no_barrier", "data race"),
        ("no_warp_barrier", "data race"),
        ("some_return", "some threads return, others wait"),
        ("different_barriers", "threads wait at different barriers"),
    ],
)
def test_the_host_finds_faults_of_kernels_on_threads(
    toy: str, symptom: str, racing_toys: Path
) -> None:
    process = subprocess.run([racing_toys, toy], capture_output=True, text=True)
    assert symptom in process.stdout + process.stderr
