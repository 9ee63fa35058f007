"""Exit of a run's process with an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

GRACE_SECONDS = 2.0
"""How long the other ranks wait for rank 0 to print an error that all ranks have."""


def leave(code: int) -> NoReturn:
    """Exit with `code`; after an error, immediately if the process group still exists.

    A normal interpreter exit would stop the group's threads, which wait for the other ranks.
    """
    distributed = sys.modules.get("torch.distributed")
    if code != 0 and distributed is not None and distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
