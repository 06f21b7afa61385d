"""The fuzzer of the CUDA kernels builds and finds nothing in a short run. The record holds runs of
all fuzzers. A planted defect is found."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from scripts_by_path import load_script

pytestmark = pytest.mark.slow

RUN = Path(__file__).parents[1] / "fuzz" / "run.py"
NEW_INPUTS = 2000


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    return load_script("fuzz/run.py")


@pytest.fixture(scope="module")
def compiler(fuzz: ModuleType) -> str:
    found = fuzz.find_compiler()
    if found is None:
        pytest.skip("needs Clang with its fuzzer library (Debian: clang-16, libclang-rt-16-dev)")
    return found


def test_cuda_kernels_on_the_host_pass_the_corpus_and_new_inputs(
    fuzz: ModuleType, compiler: str
) -> None:
    """The CPU kernels take minutes to compile: `make fuzz`."""
    kept = len(list((RUN.parent / "corpus" / "cuda").iterdir()))
    target = fuzz.TARGETS["cuda"]
    done = fuzz.run(target, compiler, seconds=0, inputs=kept + NEW_INPUTS, seed=1)
    assert done.findings == 0, "the input is in build/fuzz/cuda/findings/"
    assert done.inputs >= kept + NEW_INPUTS


@pytest.fixture(scope="module")
def planted() -> ModuleType:
    return load_script("fuzz/planted.py")


def test_every_defect_can_be_planted(planted: ModuleType, tmp_path: Path) -> None:
    for name, defect in planted.DEFECTS.items():
        planted.plant(defect, tmp_path / name)
        assert defect.wrong in (tmp_path / name / defect.file).read_text()


def test_the_fuzzer_finds_a_bin_that_is_not_written(planted: ModuleType, compiler: str) -> None:
    """The other defects take as long to compile: `python fuzz/planted.py`."""
    defect = planted.DEFECTS["last_bin"]
    assert planted.inputs_until_found(defect, compiler) is not None


def test_the_record_holds_runs_of_every_target_that_found_nothing(fuzz: ModuleType) -> None:
    runs = json.loads(RUN.with_name("record.json").read_text())
    assert {one["target"] for one in runs} == set(fuzz.TARGETS)
    assert all(set(one) == set(fuzz.Run._fields) for one in runs)
    assert all(one["findings"] == 0 and one["inputs"] > 0 < one["edges"] for one in runs)
    total = sum(each["inputs"] for each in runs)
    cuda = sum(each["inputs"] for each in runs if each["target"] == "cuda")
    page = (RUN.parents[1] / "docs" / "reliability.md").read_text()
    assert f"{total:,} inputs, {cuda:,} of them for the CUDA kernels, and no finding" in page
