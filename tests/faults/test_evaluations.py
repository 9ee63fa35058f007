"""Evaluations between steps: a stop or a way back loses none, and keeps none of another history."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quadriga.cli.entry import run
from quadriga.contracts import Batch, LossOutput
from quadriga.engine import session
from quadriga.engine.faults.preemption import Preempted
from quadriga.engine.meters.phase_timer import PhaseTimer
from quadriga.methods.mae import MAE
from tiny import assert_bit_equal, read_checkpoint, tiny_run

STEPS = 6
WORDS = (
    "loader.workers=0",
    'evaluation.protocols=[{"kind":"knn","neighbours":3}]',
    "evaluation.train_samples=40",
    "evaluation.test_samples=40",
    "evaluation.workers=0",
)
EPOCH = 1437 / 8  # steps


def words(folder: Path, save: int, evaluate_every: int, *more: str) -> list[str]:
    cuts = (f"checkpoint.every_steps={save}", f"evaluation.every_epochs={evaluate_every / EPOCH}")
    return tiny_run(folder / "run", STEPS, *WORDS, *cuts, *more)


def values(folder: Path) -> Any:
    return json.loads((folder / "run" / "checkpoints" / "best.json").read_text())


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are evaluated, in order."""
    steps: list[int] = []
    evaluate: Callable[..., Any] = session.evaluate

    def watching(config: Any, protocols: Any, context: Any, step: int, console: Any) -> Any:
        steps.append(step)
        if len(steps) == 2 and watching.stops:  # type: ignore[attr-defined]
            raise Preempted(step, "SIGTERM")
        return evaluate(config, protocols, context, step, console)

    watching.stops = False  # type: ignore[attr-defined]
    monkeypatch.setattr(session, "evaluate", watching)
    return steps


def test_an_evaluation_that_was_cut_off_is_made_up_for(
    tmp_path: Path, evaluated: list[int]
) -> None:
    best = ("checkpoint.keep_best=knn.top1", "checkpoint.best_is=highest", "checkpoint.keep=9")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert run(words(straight, 2, 2, *best)) == 0
    assert evaluated == [2, 4, 6]
    evaluated.clear()
    session.evaluate.stops = True  # type: ignore[attr-defined]
    assert run(words(stopped, 2, 2, *best)) == 75
    assert run([*words(stopped, 2, 2, *best), "--resume"]) == 0
    assert evaluated == [2, 4, 4, 6]
    assert values(stopped) == values(straight)
    # What was evaluated is not evaluated again.
    evaluated.clear()
    checkpoint = stopped / "run" / "checkpoints" / "step_00000004"
    assert run([*words(stopped, 2, 2, *best), "--resume", str(checkpoint)]) == 0
    assert evaluated == [6]
    assert values(stopped) == values(straight)
    assert_bit_equal(
        read_checkpoint(stopped / "run", STEPS), read_checkpoint(straight / "run", STEPS)
    )


def test_steps_that_are_made_again_are_evaluated_again(
    tmp_path: Path, evaluated: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0]
    begin, forward = PhaseTimer.begin_step, MAE.forward

    def watched(phase_timer: PhaseTimer, step: int) -> None:
        now[0] = step
        begin(phase_timer, step)

    def poisoned(objective: MAE, batch: Batch) -> LossOutput:
        output = forward(objective, batch)
        bad = objective.training and now[0] == 3
        return (
            LossOutput.of(output.only.total * torch.nan, output.only.targets, output.metrics)
            if bad
            else output
        )

    monkeypatch.setattr(PhaseTimer, "begin_step", watched)
    monkeypatch.setattr(MAE, "forward", poisoned)
    assert run(words(tmp_path, 2, 3, "health.non_finite=rollback")) == 0
    # Step 4 is bad, bad again, and then left out, with step 3, which is evaluated before it.
    assert evaluated == [3, 3, 3, 6]
