"""Several ranks on this machine, through torchrun, with one exit code."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from quadriga.engine.facts import cores


def torchrun_arguments(ranks: int, arguments: Sequence[str]) -> list[str]:
    """Return torchrun's arguments for a ``quadriga`` command on this machine alone.

    Args:
        ranks: Number of processes.
        arguments: The command line after ``quadriga``.
    """
    # Standalone: a free port is found, so that two runs on one machine do not meet.
    return ["--standalone", f"--nproc-per-node={ranks}", "--module", "quadriga", *arguments]


def run_ranks(ranks: int, arguments: Sequence[str]) -> int:
    """Run a ``quadriga`` command on several ranks of this machine and wait for them.

    Args:
        ranks: Number of processes; the machine's cores are shared between them.
        arguments: The command line after ``quadriga``.

    Returns:
        The exit code: 0, or that of the first rank that failed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // ranks)))
    # The rank that failed has said why, in one line; the agent would add a page.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        options = torchrun.parse_args(torchrun_arguments(ranks, arguments))  # type: ignore[no-untyped-call]
        torchrun.run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as error:
        return 128 + error.sigval.value
    return 0
