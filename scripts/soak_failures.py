#!/usr/bin/env python3
"""Calls whose allocations fail. A Python exception must be raised, and the next call must be right.

Part of scripts/soak.py, in a process of its own. Where scripts/failing_new.cpp is preloaded, up to
40 allocations of a call, drawn at random from those that the library makes with `operator new`,
fail one at a time. Then address space is scarce (RLIMIT_AS). The last line of standard output is
JSON: counts and findings.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import json
import random
import resource
import time
from collections import Counter
from pathlib import Path

import torch
from soak_calls import CALLS, Call, digest
from soak_memory import MIB

from shape_roi_align import sa_roi_align

MAX_FAILURES = 40  # allocations of one call that are made to fail, one at a time


class Failures:
    def __init__(self, seconds: float, seed: int) -> None:
        self.seconds = seconds
        self.choice = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []

    def fail_allocations(self, hook: ctypes.CDLL) -> None:
        arm, disarm = hook.shape_roi_align_arm, hook.shape_roi_align_disarm
        arm.argtypes, arm.restype = [ctypes.c_int64], ctypes.c_bool
        disarm.argtypes, disarm.restype = [], ctypes.c_int64
        deadline = time.monotonic() + 0.7 * self.seconds
        while time.monotonic() < deadline:
            number = self.choice.randrange(CALLS)
            torch.set_num_threads(self.choice.randint(1, 3))
            call = Call(number)
            expected = digest(call.results())
            assert arm(0), "the library of the operators is not loaded"
            call.results()
            allocations = disarm()
            chosen = min(allocations, MAX_FAILURES)
            for nth in self.choice.sample(range(1, allocations + 1), chosen):
                arm(nth)
                try:
                    call.results()
                    error: Exception | None = None
                except Exception as caught:
                    error = caught
                has_failed = disarm() >= nth
                if has_failed != (error is not None):  # threads take work as they get free
                    self.findings.append(f"call {number}, allocation {nth}: {error!r}")
                if has_failed:
                    self.counts["failed allocations"] += 1
                    self.counts[f"{type(error).__name__} after a failed allocation"] += 1
            if digest(call.results()) != expected:
                self.findings.append(f"call {number} is wrong after failed allocations")

    def limit_memory(self) -> None:
        """Calls with little address space left. Results of tens to hundreds of MiB may not fit."""
        torch.set_num_threads(2)
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(1, 64, 48, 48, generator=generator).requires_grad_()
        corners = torch.rand(4000, 2, generator=generator) * 40
        boxes = torch.cat([torch.zeros(4000, 1), corners, corners + 8], 1)
        maps = torch.rand(4000, 7, 7, generator=generator).requires_grad_()

        def pool(num_rois: int) -> int:
            out = sa_roi_align(x, boxes[:num_rois], maps[:num_rois], 14, 1.0, 2)
            (of_features,) = torch.autograd.grad(out.sum(), x)
            return digest([out[::50], of_features])

        expected = pool(100)
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        deadline = time.monotonic() + 0.3 * self.seconds
        while time.monotonic() < deadline:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            slack = self.choice.randint(24, 96) * MIB
            limit = pages * resource.getpagesize() + slack
            num_rois = self.choice.choice((200, 500, 1000, 2000, 4000))
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
            try:
                pool(num_rois)
                self.counts["calls in scarce memory that succeed"] += 1
            except (MemoryError, RuntimeError) as error:
                self.counts[f"{type(error).__name__} in scarce memory"] += 1
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            if pool(100) != expected:
                self.findings.append("a call is wrong after memory was scarce")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="duration; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of calls; default: %(default)s")
    arguments = parser.parse_args()
    faulthandler.enable()
    failures = Failures(arguments.seconds, arguments.seed)
    hook = ctypes.CDLL(None)
    if hasattr(hook, "shape_roi_align_arm"):
        failures.fail_allocations(hook)
    failures.limit_memory()
    print(json.dumps({"counts": failures.counts, "findings": failures.findings}))


if __name__ == "__main__":
    main()
