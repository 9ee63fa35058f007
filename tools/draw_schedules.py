"""Draw the four schedules on one scale of time: the picture in docs/planner.md.

python tools/draw_schedules.py docs/images/schedules.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from quadriga.pipeline.planner.picture import draw
from quadriga.pipeline.planner.timeline import Times, simulate
from quadriga.pipeline.schedules import SCHEDULES, make_schedule

STAGES, MICRO_BATCHES, STEPS = 4, 4, 3
TIMES = Times(forward=(1.0,) * STAGES, backward=(2.0,) * STAGES, beside=(1.5,) * STAGES)
TITLES = {
    "sequential": "sequential: one micro-batch at a time",
    "gpipe": "gpipe: all forward, all backward, flush",
    "1f1b": "1f1b: one forward, one backward, flush",
    "2bw": "2bw: one forward, one backward, no flush; weights one version late",
}


def main(path: Path) -> None:
    """Draw the picture."""
    timelines = []
    for name in SCHEDULES:
        timeline = simulate(make_schedule(name), TIMES, MICRO_BATCHES, STEPS)
        steady = simulate(make_schedule(name), TIMES, MICRO_BATCHES, 2 * STEPS)
        timelines.append((f"{TITLES[name]} (bubble {steady.bubble:.0%})", timeline))
    draw(path, timelines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
