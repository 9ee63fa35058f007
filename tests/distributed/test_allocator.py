"""Memory that a step frees serves the next one, without the system in between."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from quadriga.distributed.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    blocks = [torch.ones(2**20) for _ in range(8)]
    return sum(float(block[0]) for block in blocks)

kept = keep_freed_memory()
for _ in range(3):
    step()
before = faults()
for _ in range(10):
    step()
print(int(kept), faults() - before)
"""
PAGES = 8 * 2**20 * 4 // 4096
"""Of the blocks that one step holds."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("said", [None, "GLIBC_TUNABLES"])
def test_a_freed_block_is_used_again_unless_the_user_has_said_otherwise(said: str | None) -> None:
    value = "glibc.malloc.trim_threshold=131072" if said == "GLIBC_TUNABLES" else "131072"
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    environ = {name: text for name, text in os.environ.items() if name not in names}
    environ |= {said: value} if said else {}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=True
    )
    kept, faults = map(int, done.stdout.split())
    assert kept == (said is None)
    # Transparent huge pages would make the faults of the other cases few, so only one is bounded.
    if said is None:
        assert faults < PAGES // 4
