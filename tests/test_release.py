"""The parts of a release: all sources, archives that depend only on their files, binaries for an
older Linux, and workflows of make targets."""

from __future__ import annotations

import hashlib
import io
import os
import re
import runpy
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
DATE = 1_700_000_000


def run(*command: str | Path, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked_files() -> set[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git repository around the sources")
    return set(run("git", "ls-files", "-z", cwd=ROOT).split("\0")) - {""}


@pytest.mark.slow
def test_the_source_distribution_is_all_that_git_tracks(tmp_path: Path) -> None:
    tracked = tracked_files()
    egg_info = ["egg_info", "--egg-base", tmp_path]
    environment = {**os.environ, "SHAPE_ROI_ALIGN_CUDA": "0"}
    command = [sys.executable, "setup.py", "--quiet", *egg_info, "sdist", "--dist-dir", tmp_path]
    run(*command, cwd=ROOT, env=environment)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {entry.name.split("/", 1)[1] for entry in archive.getmembers() if entry.isfile()}
    made = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert names - made == {name for name in tracked if (ROOT / name).exists()}


def test_every_part_that_a_wheel_links_statically_has_a_licence_in_it() -> None:
    patterns = re.search(r"^license-files = (.+)$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert patterns and patterns[1] == '["LICENSE", "licenses/*"]'
    table = (ROOT / "licenses" / "README.md").read_text()
    for library in re.findall(r'"(\w+_static)"', (ROOT / "setup.py").read_text()):
        assert f"lib{library}.a" in table
    for name in re.findall(r"`([\w-]+\.txt|LICENSE)`", table):
        assert any((ROOT / folder / name).is_file() for folder in ("", "licenses"))


def write_wheel(path: Path, names: list[str], date: tuple[int, ...], mode: int) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        for name in names:
            entry = zipfile.ZipInfo(name, date)
            entry.external_attr = (0o100000 | mode) << 16
            wheel.writestr(entry, f"content of {name}")


def write_sdist(path: Path, names: list[str], date: float, mode: int) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            content = f"content of {name}".encode()
            entry.size, entry.mtime, entry.mode, entry.uname = len(content), date, mode, str(date)
            archive.addfile(entry, io.BytesIO(content))


def rewrite(*paths: Path) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(DATE)}
    run(sys.executable, SCRIPTS / "reproducible.py", *paths, env=environment)


def test_wheels_of_the_same_files_become_the_same_bytes(tmp_path: Path) -> None:
    names = ["a.dist-info/RECORD", "b/c.py", "b/a.so"]
    paths = [tmp_path / "1.whl", tmp_path / "2.whl"]
    write_wheel(paths[0], names, (1999, 1, 1, 0, 0, 0), 0o644)
    write_wheel(paths[1], names[::-1], (2024, 1, 1, 0, 0, 0), 0o664)
    assert paths[0].read_bytes() != paths[1].read_bytes()
    rewrite(*paths)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with zipfile.ZipFile(paths[0]) as wheel:
        assert wheel.namelist() == ["b/a.so", "b/c.py", "a.dist-info/RECORD"]
        assert wheel.read("b/c.py") == b"content of b/c.py"
        assert wheel.getinfo("b/c.py").date_time == time.gmtime(DATE)[:6]


def test_source_distributions_of_the_same_files_become_the_same_bytes(tmp_path: Path) -> None:
    names = ["x-1/a", "x-1/b/c"]
    paths = [tmp_path / "1.tar.gz", tmp_path / "2.tar.gz"]
    write_sdist(paths[0], names, 1e9, 0o755)
    write_sdist(paths[1], names[::-1], 1.5e9, 0o775)
    rewrite(*paths)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with tarfile.open(paths[0]) as archive:
        assert archive.getnames() == names
        entry = archive.getmember("x-1/a")
        assert (entry.mode, entry.mtime, entry.uname) == (0o755, DATE, "")
        content = archive.extractfile(entry)
        assert content is not None and content.read() == b"content of x-1/a"


PROGRAM = """
#include <dlfcn.h>
#include <pthread.h>
#include <cmath>
#include <memory>
#include <sstream>
#include <vector>
std::string use(std::shared_ptr<int> shared, int n) {
  std::stringstream stream;
  auto copy = shared;
  std::vector<double> values(n, std::exp(double(n)));
  pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, nullptr);
  stream << dlsym(nullptr, "x") << values[0] << *copy;
  return stream.str();
}
"""


def newest(library: Path, family: str) -> tuple[int, ...]:
    needs = run("readelf", "--version-info", "--wide", library)
    versions = re.findall(rf"Name: {family}_([\d.]+)", needs)
    return max(tuple(map(int, version.split("."))) for version in versions)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_stubs_link_for_an_older_glibc_and_libstdcpp(tmp_path: Path) -> None:
    stubs, source, plain, old = (
        tmp_path / name for name in ("stubs", "program.cpp", "plain.so", "old.so")
    )
    run(sys.executable, SCRIPTS / "link_stubs.py", stubs)
    source.write_text(PROGRAM)
    compile_and_link = [os.environ.get("CXX", "c++"), "-std=c++20", "-fPIC", "-shared", source]
    compile_and_link += ["-Wl,-z,defs", "-Wl,--exclude-libs,ALL"]
    run(*compile_and_link, "-o", plain)
    run(*compile_and_link, f"-L{stubs}", "-o", old)
    assert newest(old, "GLIBC") <= (2, 28)
    assert newest(old, "GLIBCXX") <= (3, 4, 24)
    assert newest(old, "CXXABI") <= (1, 3, 11)
    if newest(plain, "GLIBC") <= (2, 28):
        pytest.skip("needs a glibc that is newer than the one linked for")
    # It runs: every symbol is found, without the stubs.
    load = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    run(sys.executable, "-c", load, old)


def test_every_step_of_a_workflow_is_a_make_target_or_an_action_pinned_by_hash() -> None:
    makefile = (ROOT / "Makefile").read_text()
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert [path.name for path in workflows] == ["docs.yml", "release.yml", "test.yml"]
    for path in workflows:
        steps = re.findall(r"^ *- (uses|run): (.+)$", path.read_text(), re.MULTILINE)
        assert steps
        for kind, value in steps:
            if kind == "run":
                target = re.fullmatch(r"make ([\w-]+)", value)
                assert target and f"\n{target[1]}:" in makefile, value
            else:
                assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v[\d.]+", value), value


def test_the_table_of_a_wheel_has_a_row_per_trial_and_replaces_the_former_one(
    tmp_path: Path,
) -> None:
    names = runpy.run_path(str(SCRIPTS / "test_wheel.py"))
    wheel = tmp_path / "x-1-py3-none-manylinux_2_28_x86_64.whl"
    write_wheel(wheel, ["x/libx.so"], (2024, 1, 1, 0, 0, 0), 0o644)
    versions = {"python": "3.12.1", "glibc": "2.36", "torch": "2.10.0", "torchvision": ""}
    versions["numpy"] = "1.23.5"
    trials = [names["Trial"](versions, "passed", 61.4)]
    trials.append(names["Trial"](versions, "FAILED to check: /some/log", 2.0))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{names['BEGIN']}an old table\n{names['END']}after\n")
    names["replace_section"](page, names["describe"](wheel, trials))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "old" not in text and "/some/log" not in text
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in text
    assert "| 3.12.1 | 2.36 | 2.10.0 | none | 1.23.5 | 61 | passed |" in text
    assert "| 3.12.1 | 2.36 | 2.10.0 | none | 1.23.5 | 2 | FAILED to check |" in text
    assert "| `x/libx.so` |" in text
