#!/usr/bin/env python3
"""Writes a folder with which GCC links for an older glibc and libstdc++ than this machine's.

    python scripts/link_stubs.py build/link-stubs
    g++ -Lbuild/link-stubs -shared -Wl,--exclude-libs,ALL ...

Object files name symbols without versions; the linker takes the newest version that a shared
library offers. The libraries in this folder have no code. They offer the symbols of this machine's
libraries, but no version newer than requested. Symbols that have only newer versions come from
libstdc++.a, as in the GCC of the manylinux images, and stay hidden. All other newer symbols are
undefined, which is an error with ``-Wl,-z,defs``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

# The newest that manylinux_2_28 allows: auditwheel's policies.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}

# glibc 2.32 to 2.34 moved these libraries into libc.so.6, where their symbols have a new version.
MOVED = {"libdl.so.2": ("dl",), "librt.so.1": ("shm_", "mq_", "timer_", "aio_", "lio_")}
MOVED["libpthread.so.0"] = ("pthread_", "sem_", "__pthread_")
AFTER_MOVE = (2, 32)

# A flag that libstdc++'s headers of GCC 11 and later read; glibc has it from 2.32 on. 0: there may
# be other threads.
FLAG = "__libc_single_threaded"

Version = tuple[int, ...]


class Symbol(NamedTuple):
    name: str
    kind: str  # function or object
    family: str  # GLIBC, GLIBCXX, CXXABI
    version: Version

    def node(self) -> str:
        return f"{self.family}_{'.'.join(map(str, self.version))}"


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def parse_symbols(listing: str) -> list[Symbol]:
    """Defined, versioned symbols in the output of ``readelf --dyn-syms --wide``."""
    pattern = re.compile(
        r"(FUNC|IFUNC|OBJECT) +(?:GLOBAL|WEAK|UNIQUE) +DEFAULT +(?!UND)\w+ "
        r"([^\s@]+)@@?(GLIBC|GLIBCXX|CXXABI)_([\d.]+)$",
        re.MULTILINE,
    )
    return [
        Symbol(name, "object" if kind == "OBJECT" else "function", family, parse_version(version))
        for kind, name, family, version in pattern.findall(listing)
    ]


def parse_version(text: str) -> Version:
    return tuple(map(int, text.split(".")))


def choose(symbols: list[Symbol], newest: Mapping[str, Version]) -> dict[str, list[Symbol]]:
    """The newest permitted version of each symbol, by the library that offered this version; ""
    stands for the library that was read."""
    versions: dict[str, list[Symbol]] = defaultdict(list)
    for symbol in symbols:
        versions[symbol.name].append(symbol)
    chosen: dict[str, list[Symbol]] = defaultdict(list)
    for name, found in sorted(versions.items()):
        old = [symbol for symbol in found if symbol.version <= newest[symbol.family]]
        if not old:
            continue
        moved = any(s.family == "GLIBC" and s.version >= AFTER_MOVE for s in found)
        homes = [home for home, prefixes in MOVED.items() if moved and name.startswith(prefixes)]
        chosen[homes[0] if homes else ""].append(max(old, key=lambda symbol: symbol.version))
    return chosen


def write_library(path: Path, symbols: list[Symbol], compiler: str) -> None:
    """A shared library of empty symbols; path.name is its soname."""
    lines = [".section .note.GNU-stack"]
    nodes: dict[str, list[str]] = defaultdict(list)
    for symbol in symbols:
        section = ".data" if symbol.kind == "object" else ".text"
        lines += [section, f".globl {symbol.name}", f".type {symbol.name}, %{symbol.kind}"]
        lines += [f"{symbol.name}: .quad 0", f".size {symbol.name}, 8"]
        nodes[symbol.node()].append(symbol.name)
    source, script = path.with_suffix(".s"), path.with_suffix(".map")
    source.write_text("\n".join(lines) + "\n")
    script.write_text(
        "".join(f"{node} {{ {'; '.join(names)}; }};\n" for node, names in sorted(nodes.items()))
    )
    options = [f"-Wl,-soname,{path.name}", f"-Wl,--version-script,{script}", "-nostdlib"]
    run(compiler, "-shared", *options, "-o", path, source)
    source.unlink()
    script.unlink()


def write_stubs(folder: Path, compiler: str, newest: Mapping[str, Version]) -> None:
    def locate(name: str) -> Path:
        path = Path(run(compiler, f"-print-file-name={name}").strip())
        if not path.is_absolute():
            raise SystemExit(f"{compiler} has no {name}. Install it: apt install g++ libc6-dev")
        return path.resolve()

    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    dynamic_section = run("readelf", "--dynamic", "--wide", locate("libc.so.6"))
    (loader,) = re.findall(r"\(NEEDED\).*\[(ld-.+)\]", dynamic_section)
    for name in ("libc.so.6", "libm.so.6", "libstdc++.so.6", loader):
        symbols = choose(
            parse_symbols(run("readelf", "--dyn-syms", "--wide", locate(name))), newest
        )
        for home, found in symbols.items():
            write_library(folder / (home or name), found, compiler)
    flag = folder / "flag.c"
    flag.write_text(f'__attribute__((visibility("hidden"))) char {FLAG} = 0;\n')
    run(compiler, "-x", "c", "-fPIC", "-O2", "-c", flag, "-o", folder / "flag.o")
    flag.unlink()
    run("ar", "rcsD", folder / "libflag.a", folder / "flag.o")

    optional = [loader, *(name for name in MOVED if (folder / name).exists())]
    as_needed = " ".join(str(folder / name) for name in optional)
    scripts = {
        "libc.so": f"{folder}/libc.so.6 {folder}/libflag.a {locate('libc_nonshared.a')} "
        f"AS_NEEDED({as_needed})",
        "libm.so": f"{folder}/libm.so.6",
        "libstdc++.so": f"{folder}/libstdc++.so.6 {locate('libstdc++.a')}",
        **{name.split(".so")[0] + ".so": str(folder / name) for name in optional[1:]},
    }
    for name, inputs in scripts.items():
        (folder / name).write_text(f"GROUP({inputs})\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to write")
    for family in NEWEST:
        parser.add_argument(
            f"--{family.lower()}",
            type=parse_version,
            default=NEWEST[family],
            metavar="VERSION",
            help=f"newest symbol version; default: {'.'.join(map(str, NEWEST[family]))}",
        )
    options = parser.parse_args()
    newest = {"GLIBC": options.glibc, "GLIBCXX": options.glibcxx, "CXXABI": options.cxxabi}
    write_stubs(options.folder, os.environ.get("CXX", "c++"), newest)
    names = {family: ".".join(map(str, version)) for family, version in newest.items()}
    print(f"{options.folder}: " + ", ".join(f"{k} {v}" for k, v in names.items()))


if __name__ == "__main__":
    main()
