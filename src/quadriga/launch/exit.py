"""How a process of a run ends: with which code, and how soon."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

GRACE_SECONDS = 2.0
"""How long the other ranks wait for rank 0 to tell the error that all of them have."""


def leave(code: int) -> NoReturn:
    """End the process: at once where a rank has left its group behind.

    What ends the group's threads would wait for the other ranks.
    """
    distributed = sys.modules.get("torch.distributed")
    if code != 0 and distributed is not None and distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
