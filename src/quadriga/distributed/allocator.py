"""What becomes of the memory that a step on the CPU frees."""

from __future__ import annotations

import ctypes
import os
import platform
import re

import torch

LARGEST_KEPT = 2**28
"""Bytes of the largest block that a process keeps; larger ones go back to the system."""
LARGEST_KEPT_SHARDED = 2**20
"""The same where parameters are sharded. Weights that a block gathers are freed between tensors
that stay; a heap that keeps such holes doubles the peak: ``benchmarks/sharded_memory.py``."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of mallopt(3)."""


def keep_freed_memory(largest: int = LARGEST_KEPT) -> bool:
    """Let this process keep the blocks that it frees, where the C library is glibc.

    By default glibc hands large blocks back to the system, and the activations of the next step
    are faulted in and zeroed anew, page by page: ``benchmarks/freed_memory.py``. What the user has
    said in the environment (``MALLOC_*_THRESHOLD_``, ``GLIBC_TUNABLES``) stays.

    Args:
        largest: Bytes of the largest block that is kept.

    Returns:
        Whether the process keeps them from now on.
    """
    said = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys()
    if said or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Setting the second alone would pin the first to its default of 128 KiB, which is worse.
    kept = mallopt(_M_MMAP_THRESHOLD, largest)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on the host or on a device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(
        re.search("can(no|')t allocate memory", str(error), re.IGNORECASE)
    )
