"""Any annotation file is either read or refused with one of two kinds of error."""

from __future__ import annotations

import copy
import json
import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_coco import VALID, write_data

from training.data import CocoInstances

pytestmark = pytest.mark.filterwarnings("ignore:.*objects whose box has no area:UserWarning")

GIGABYTE = 2**20  # in kilobytes
CHECKED = settings(max_examples=250, deadline=5000)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2**31, 2**32 + 1, 2**63, 10**300, 10**400])
    | st.floats()
    | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.sampled_from(["id", "size", "counts", "name"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def places(value, path=()):
    """Paths to every value inside a JSON value, without the value itself."""
    items = enumerate(value) if isinstance(value, list) else ()
    for key, inner in value.items() if isinstance(value, dict) else items:
        yield (*path, key)
        yield from places(inner, (*path, key))


PLACES = list(places(VALID))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("fuzz"))


def read(path, content):
    """Open a file of this content and load its items, in bounded memory."""
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        data = CocoInstances(path.parents[1], "train")
        for _, target in data:
            assert len(target["boxes"]) == len(target["masks"]) == len(target["labels"])
    except (ValueError, FileNotFoundError) as error:
        assert str(path.parents[1]) in str(error)
        assert len(str(error)) < 10_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIGABYTE


@pytest.mark.slow
@CHECKED
@given(st.data())
def test_any_value_in_any_place_is_read_or_refused(path, data):
    coco = copy.deepcopy(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(PLACES))
        holder = coco
        try:
            for key in parents:
                holder = holder[key]
            holder[last] = data.draw(values)
        except (IndexError, KeyError, TypeError):  # an earlier change removed the place
            continue
    read(path, json.dumps(coco).encode())


@CHECKED
@given(place=st.sampled_from(PLACES), depth=st.sampled_from([2, 50, 900]))
def test_deep_nesting_in_any_place_is_refused(path, place, depth):
    coco = copy.deepcopy(VALID)
    *parents, last = place
    holder = coco
    for key in parents:
        holder = holder[key]
    holder[last] = nested(depth)
    read(path, json.dumps(coco).encode())


@CHECKED
@given(cut=st.integers(0, len(json.dumps(VALID))), tail=st.binary(max_size=8))
def test_a_file_that_ends_anywhere_is_refused(path, cut, tail):
    read(path, json.dumps(VALID).encode()[:cut] + tail)


@CHECKED
@given(st.lists(st.integers(-2, 2**33), max_size=8) | st.text(max_size=40))
def test_any_run_lengths_are_read_or_refused(path, counts):
    coco = copy.deepcopy(VALID)
    coco["annotations"][1]["segmentation"]["counts"] = counts
    read(path, json.dumps(coco).encode())


@CHECKED
@given(st.lists(st.floats(-40, 40), min_size=6, max_size=12))
def test_any_polygon_is_read_or_refused(path, coordinates):
    coco = copy.deepcopy(VALID)
    coco["annotations"][0]["segmentation"] = [coordinates]
    read(path, json.dumps(coco).encode())
