"""Tuning of glibc's allocator for steps on the CPU, and detection of failed allocations."""

from __future__ import annotations

import ctypes
import os
import platform
import re

import torch

LARGEST_KEPT = 2**28
"""Largest freed block in bytes that a process keeps; larger blocks return to the system."""
LARGEST_KEPT_SHARDED = 2**20
"""The same where parameters are sharded. Gathered weights are freed between tensors that stay, and
a heap that keeps such holes doubles the peak memory: ``benchmarks/sharded_memory.py``."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameter numbers of mallopt(3)."""


def keep_freed_memory(largest: int = LARGEST_KEPT) -> bool:
    """Make this process keep freed blocks for reuse, where the C library is glibc.

    By default glibc returns large blocks to the system, and the kernel faults in and zeroes the
    next step's activations page by page: ``benchmarks/freed_memory.py``. Settings in the
    environment (``MALLOC_*_THRESHOLD_``, ``GLIBC_TUNABLES``) take precedence.

    Args:
        largest: Largest block to keep, in bytes.

    Returns:
        Whether the setting was changed.
    """
    said = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys()
    if said or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Setting only the trim threshold would pin the mmap threshold to 128 KiB, which is worse.
    kept = mallopt(_M_MMAP_THRESHOLD, largest)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on the host or on a device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(
        re.search("can(no|')t allocate memory", str(error), re.IGNORECASE)
    )
