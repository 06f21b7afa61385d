"""The geometry that the kernels share, read through shape_roi_align._C: its samples equal the
oracle's, and its taps add up."""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import oracle
from calls import to_call
from cases import CASES, Case
from oracle import Options
from shape_roi_align import _C, __version__
from strategies import COORDINATES, SIZES, cases, is_cheap

relaxed = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
CORNERS = st.tuples(*[COORDINATES] * 4)
ONE_MAP = [c for c in CASES if len(c.features) == 1 and c.levels is None and c.features[0].size]


def taps_of(
    box: tuple[float, ...], size: tuple[int, int], options: Options, prob_map=None
) -> np.ndarray:
    """The operator's matrix for one box, [PH, PW, H, W], from _C.box_taps."""
    taps = _C.box_taps(
        box,
        height=size[0],
        width=size[1],
        output_size=options.output_size,
        spatial_scale=options.spatial_scales[0],
        sampling_ratio=options.sampling_ratio,
        aligned=options.aligned,
        prob_map=prob_map,
        map_aligned=options.map_aligned,
        average=options.average,
    )
    begin = taps["bin_begin"]
    matrix = np.zeros((len(begin) - 1, *size))
    bins = np.repeat(np.arange(len(begin) - 1), np.diff(begin))
    np.add.at(matrix, (bins, taps["row"], taps["column"]), taps["weight"])
    return matrix.reshape(*options.output_size, *size)


@pytest.mark.parametrize("case", ONE_MAP, ids=repr)
def test_taps_are_the_whole_operator(case: Case) -> None:
    """Features times taps is the output, for every box of every case."""
    expected, (features,) = case.expected(), case.features
    for k, roi in enumerate(case.rois):
        prob_map = None if case.prob_maps is None else case.prob_maps[k]
        matrix = taps_of(tuple(roi[1:]), features.shape[2:], case.options, prob_map)
        out = np.einsum("pqhw,chw->cpq", matrix, features[int(roi[0])])
        np.testing.assert_allclose(out, expected[k], rtol=1e-12, atol=1e-12)


@relaxed
@given(case=cases(zero_sizes=False))
def test_samples_are_the_oracles(case: Case) -> None:
    assume(is_cheap(case))
    options = case.options
    height, width = case.features[0].shape[2:]
    for roi in case.rois:
        box = oracle.box_on_map(roi, 0, options)
        if box is None:
            continue
        points = _C.sampling_points(
            tuple(roi[1:]),
            height=height,
            width=width,
            output_size=options.output_size,
            spatial_scale=options.spatial_scales[0],
            sampling_ratio=options.sampling_ratio,
            aligned=options.aligned,
        )
        for axis, size, name in ((0, height, "y"), (1, width, "x")):
            got, bins = points[name], options.output_size[axis]
            count = box.samples[axis]
            assert got["samples_per_bin"] == count
            place = (np.arange(bins * count) + 0.5) / (bins * count)
            coordinate = box.start[axis] + place * box.extent[axis]
            shown = np.isin(np.arange(bins * count), np.rint(got["place"] * bins * count - 0.5))
            tolerance = 1e-9 * (1 + abs(box.start[axis]) + abs(box.extent[axis]))
            np.testing.assert_allclose(got["place"], place[shown], rtol=1e-12)
            np.testing.assert_allclose(got["coordinate"], coordinate[shown], rtol=0, atol=tolerance)
            np.testing.assert_array_equal(got["bin"], np.arange(bins * count)[shown] // count)
            reads = (coordinate >= -1 + tolerance) & (coordinate <= size - tolerance)
            assert not (reads & ~shown).any(), "no sample that reads the map is left out"
            inside = (got["coordinate"] >= -1) & (got["coordinate"] <= size)
            np.testing.assert_array_equal(got["inside"], inside)


@relaxed
@given(
    corners=CORNERS,
    size=st.tuples(SIZES, SIZES),
    output_size=st.tuples(SIZES, SIZES),
    ratio=st.sampled_from([-1, 1, 2, 5]),
    aligned=st.booleans(),
)
def test_weights_of_a_bin_are_the_share_of_its_samples_that_read_the_map(
    corners: tuple[float, ...],
    size: tuple[int, int],
    output_size: tuple[int, int],
    ratio: int,
    aligned: bool,
) -> None:
    """The weights add up to 1 inside the map and to less across its border; none is negative."""
    options = Options(output_size, sampling_ratio=ratio, aligned=aligned)
    roi = np.array([0, *corners])
    matrix = taps_of(corners, size, options)
    assert (matrix >= 0).all()
    total = matrix.sum((2, 3))
    assert (total <= 1 + 1e-9).all()
    box = oracle.box_on_map(roi, 0, options)
    if box is None:
        assert not matrix.any()
        return
    if ratio <= 0 or np.abs(corners).max() > 1e3:
        return
    reads = []
    for axis in (0, 1):
        count = output_size[axis] * box.samples[axis]
        coordinate = box.start[axis] + (np.arange(count) + 0.5) / count * box.extent[axis]
        assume(
            (np.abs(coordinate + 1) > 1e-9).all() and (np.abs(coordinate - size[axis]) > 1e-9).all()
        )
        inside = (coordinate >= -1) & (coordinate <= size[axis])
        reads.append(inside.reshape(output_size[axis], -1).mean(1))
    np.testing.assert_allclose(total, np.outer(*reads), rtol=1e-9, atol=1e-12)


@relaxed
@given(case=cases(zero_sizes=False, coordinates=st.floats(-20, 30, width=32)))
def test_taps_equal_the_operator(case: Case) -> None:
    """_C shows what the kernels do: its taps applied to features give the operator's output."""
    out = to_call(case).op().numpy()
    for k, roi in enumerate(case.rois):
        level = 0 if case.levels is None else int(case.levels[k])
        options = Options(
            case.options.output_size,
            (case.options.spatial_scales[level],),
            case.options.sampling_ratio,
            case.options.aligned,
            case.options.map_aligned,
        )
        features = case.features[level]
        prob_map = None if case.prob_maps is None else case.prob_maps[k]
        matrix = taps_of(tuple(roi[1:]), features.shape[2:], options, prob_map)
        pooled = np.einsum("pqhw,chw->cpq", matrix, features[int(roi[0])])
        np.testing.assert_allclose(out[k], pooled, rtol=1e-11, atol=1e-12)


def test_bad_arguments_are_value_errors() -> None:
    good = {"height": 4, "width": 5, "output_size": (2, 2)}
    for change in ({"height": 0}, {"width": -1}, {"output_size": (0, 2)}):
        for function in (_C.sampling_points, _C.box_taps):
            with pytest.raises(ValueError, match="at least 1"):
                function((0, 0, 3, 3), **(good | change))
    with pytest.raises(ValueError, match="prob_map"):
        _C.box_taps((0, 0, 3, 3), **good, prob_map=np.ones(3))
    with pytest.raises(ValueError, match="finite"):
        _C.sampling_points((0, 0, np.nan, 3), **good)


def test_build_facts() -> None:
    info = _C.build_info()
    assert info["version"] == __version__
    assert info["torch"] and info["compiler"]
    assert bool(info["cuda"]) == bool(info["cuda_architectures"])
    assert _C.cpu_capability() in ("portable", "avx2", "avx512")
