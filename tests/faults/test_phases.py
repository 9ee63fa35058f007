"""What takes long beside the steps is told to the hang detector as that, not as a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from quadriga.cli.entry import run
from quadriga.contracts import Batch, LossOutput
from quadriga.engine import session
from quadriga.engine.checkpoint.store import CheckpointStore
from quadriga.engine.faults import recovery
from quadriga.engine.meters.phase_timer import PhaseTimer
from quadriga.methods.mae import MAE
from tiny import tiny_run


class Watched:
    """The phase timer of the run in this process, and its phase at calls of some functions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.phase_timer = PhaseTimer()
        self.phases: list[tuple[str, str]] = []
        self._patch = monkeypatch
        monkeypatch.setattr(session, "PhaseTimer", lambda: self.phase_timer)

    def watch(self, owner: Any, name: str) -> None:
        """Note the phase whenever a function is called."""
        function = getattr(owner, name)

        def watching(*arguments: Any, **named: Any) -> Any:
            self.phases.append((name, self.phase_timer.phase))
            return function(*arguments, **named)

        self._patch.setattr(owner, name, watching)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_the_last_save_is_waited_for_as_a_save(tmp_path: Path, watched: Watched) -> None:
    watched.watch(CheckpointStore, "wait")
    assert run(tiny_run(tmp_path / "run", 2, "loader.workers=0")) == 0
    assert watched.phases[0] == ("wait", "save")


def test_the_way_back_is_no_step(
    tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.watch(recovery, "write_replay")
    watched.watch(recovery, "newest_valid")
    watched.watch(CheckpointStore, "load")
    forward, once = MAE.forward, [True]

    def poisoned(objective: MAE, batch: Batch) -> LossOutput:
        output = forward(objective, batch)
        if watched.phase_timer.step == 3 and watched.phase_timer.phase == "forward" and once:
            once.clear()
            return LossOutput.of(output.only.total * torch.nan, output.only.targets, output.metrics)
        return output

    monkeypatch.setattr(MAE, "forward", poisoned)
    words = ("loader.workers=0", "checkpoint.every_steps=2", "health.non_finite=rollback")
    assert run(tiny_run(tmp_path / "run", 4, *words)) == 0
    assert watched.phases == [
        ("write_replay", "save"),
        ("newest_valid", "start"),
        ("load", "start"),
    ]
