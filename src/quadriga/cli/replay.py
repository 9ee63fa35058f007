"""``quadriga replay``."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from quadriga.distributed.environment import pick_device, set_threads
from quadriga.engine.faults.replay import Part, Replay

SHOWN = 8
_WIDTH = 160
NOT_REPRODUCED = 1


def replay(file: Path, device: str) -> int:
    """Repeat one recorded step and print a table row for each micro-batch.

    Args:
        file: A replay file of a run.
        device: Where to compute.

    Returns:
        0 if a loss or gradient is not finite again, else 1.

    Raises:
        UserError: The file or its data cannot be read.
    """
    set_threads(1)
    made = Replay(file, pick_device(device, 0))
    bad, ranks = made.recorded.bad, made.recorded.world_size
    print(f"{file}: {bad}, on {ranks} rank{'s' if ranks > 1 else ''}, {made.config.name}")
    table = Table()
    for name in ("rank", "micro-batch", "samples", "loss", "first not finite", "bad samples"):
        table.add_column(name, overflow="fold")
    found_bad = False
    for part in made.parts():
        found_bad |= not math.isfinite(part.loss)
        table.add_row(*_row(part))
    # Output to a file has no width of its own; rich's default of 80 columns would cut the names.
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)
    gradients = made.bad_gradients()
    if gradients:
        print(f"gradients that are not finite: {_listed(gradients)}")
    if found_bad or gradients:
        print(f"reproduced: {bad.what} is not finite")
        return 0
    print(
        "not reproduced: every loss and gradient is finite here; the cause was the hardware, the "
        "device's arithmetic or something outside the step's data and weights"
    )
    return NOT_REPRODUCED


def _row(part: Part) -> list[str]:
    return [
        str(part.rank),
        str(part.micro),
        _listed(part.index),
        f"{part.loss:.6g}",
        part.first or "-",
        _listed(part.samples) or "-",
    ]


def _listed(items: list[int] | list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(map(str, items[:SHOWN])) + more
