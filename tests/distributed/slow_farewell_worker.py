"""One rank of a run that ends on every rank, and whose rank 0 has still something to do.

    python slow_farewell_worker.py FOLDER KIND

KIND is ``error`` (all ranks raise the same one), ``replay`` (rank 0 writes slowly before all ranks
raise), ``stop`` (all ranks were asked to stop after the same step) or ``lone`` (rank 1 leaves
alone). Each rank notes when it has left the group, and rank 0 when it has finished.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

from parallel_worker import tiny_config
from quadriga.config.provenance import Resolved
from quadriga.distributed.collectives import from_main
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.engine.build import build_objective
from quadriga.engine.faults import replay
from quadriga.engine.faults.preemption import Preemption
from quadriga.engine.run_plan import make_plan
from quadriga.engine.step.bad_step import BadStep, stop_at
from quadriga.errors import UserError

SECONDS = 3.0


def fail() -> None:
    """Fail on rank 0."""
    raise UserError("this cannot be")


def slowly(*arguments: object, **named: object) -> None:
    """Write nothing, and take long."""
    time.sleep(SECONDS)
    Path(str(arguments[1])).touch()


def end(env: DistEnv, folder: Path, kind: str) -> None:
    """End as all ranks do."""
    if kind == "replay":
        replay.save_file = slowly  # type: ignore[assignment]
        config = tiny_config([])
        objective = build_objective(config, env.device, config.seed)
        plan, bad = make_plan(config, 1000, env.world_size), BadStep(3, "loss", math.nan, 1.0, 3)
        resolved = Resolved.of(config, "test")
        replay.write_replay(folder / "replay", resolved, plan, env, objective, bad)
        (folder / f"written_{env.rank}").write_text(str(time.time()))
        stop_at(bad)
    try:
        if kind == "error":
            from_main(fail, env)
        if kind == "stop":
            raise Preemption().preempted(3)
        if env.rank == 1:
            fail()
        from_main(lambda: None, env)
    finally:
        if env.is_main:
            time.sleep(SECONDS)
            (folder / "finished").write_text(str(time.time()))


if __name__ == "__main__":
    place, own = Path(sys.argv[1]), -1
    try:
        with process_group("cpu") as env:
            own = env.rank
            end(env, place, sys.argv[2])
    finally:
        (place / f"left_{own}").write_text(str(time.time()))
