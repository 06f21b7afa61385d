#!/usr/bin/env python3
"""Checks that a wheel runs on every Linux that torch's wheels support, and tags the wheel so.

    python scripts/repair_wheel.py build/release/NAME-linux_x86_64.whl dist

Needs auditwheel and patchelf. auditwheel fails if a symbol is newer than the tag allows. Nothing is
bundled: at run time the package uses the libraries of the installed torch. Symbol tables are
stripped, and the archive is made reproducible by scripts/reproducible.py.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from reproducible import rewrite

POLICY = "manylinux_2_28"  # of torch's wheels


def repair(wheel: Path, folder: Path) -> Path:
    """The path of the repaired wheel in ``folder``."""
    auditwheel = shutil.which("auditwheel")
    if auditwheel is None:
        sys.exit("repair_wheel.py needs auditwheel: pip install auditwheel patchelf")
    tag = f"{POLICY}_{platform.machine()}"
    with tempfile.TemporaryDirectory() as temporary:
        command = [auditwheel, "repair", "--plat", tag, "--only-plat", "--strip"]
        command += ["--exclude", "libtorch*.so", "--exclude", "libc10*.so"]
        done = subprocess.run([*command, "--wheel-dir", temporary, str(wheel)])
        if done.returncode:
            sys.exit(
                f"{wheel.name} does not qualify for {tag}. Link for an older glibc: "
                "LDFLAGS=-Lbuild/link-stubs after python scripts/link_stubs.py build/link-stubs"
            )
        (repaired,) = Path(temporary).glob("*.whl")
        rewrite(repaired)
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(repaired, folder / repaired.name))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path, metavar="WHEEL", help="file to repair")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for the repaired wheel")
    options = parser.parse_args()
    print(repair(options.wheel, options.folder))


if __name__ == "__main__":
    main()
