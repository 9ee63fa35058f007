"""The command as a rank of a pipeline, with one fault in it.

    python faulty_worker.py CASE FOLDER

CASE is JSON: ``name``, ``d``, ``w``, ``words`` (overrides), ``fault`` (a function of `FAULTS`),
``rank`` and ``step`` (where it strikes; a list of steps strikes at each of them), and ``times``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pipeline_fakes  # noqa: F401  (the config names its classes)
from quadriga.cli.entry import main as command
from quadriga.contracts import LossOutput
from quadriga.pipeline.runtime.stage_runner import StageRunner
from quadriga.pipeline.runtime.updates import Updates


def at_forward(case: dict[str, Any], strike: Callable[[Any], Any]) -> None:
    """Call `strike` before the first forward pass of each of the case's steps."""
    own, left = StageRunner.forward, [case.get("times", 10**6)]
    steps = case["step"] if isinstance(case["step"], list) else [case["step"]]

    def forward(runner: StageRunner, module: Any, batch: Any, step: int, micro: int) -> Any:
        if step in steps and left[0] and micro == 0:
            left[0] -= 1
            strike(runner)
        return own(runner, module, batch, step, micro)

    StageRunner.forward = forward  # type: ignore[method-assign]


def nan(case: dict[str, Any]) -> None:
    """Make what the stage computes not a number."""

    def strike(runner: StageRunner) -> None:
        compute = runner._compute

        def poisoned(*arguments: Any) -> Any:
            output = compute(*arguments)
            runner._compute = compute  # type: ignore[method-assign]
            if isinstance(output, torch.Tensor):
                return output * float("nan")
            return LossOutput.of(
                output.only.total * float("nan"), output.only.targets, output.metrics
            )

        runner._compute = poisoned  # type: ignore[method-assign]

    at_forward(case, strike)


def bad_gradient(case: dict[str, Any]) -> None:
    """Make the gradient of one stage's parameters infinite; its losses are good."""
    own = Updates._update

    def update(updates: Updates, step: int, *rest: Any) -> Any:
        if step == case["step"]:
            updates.buffers[step % len(updates.buffers)].flat.fill_(float("inf"))
        return own(updates, step, *rest)

    Updates._update = update  # type: ignore[method-assign]


def signalled(case: dict[str, Any]) -> None:
    """Send this process a signal."""
    at_forward(case, lambda runner: os.kill(os.getpid(), case["signal"]))


def standing(case: dict[str, Any]) -> None:
    """Stand still."""
    at_forward(case, lambda runner: time.sleep(600))


FAULTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "nan": nan,
    "bad gradient": bad_gradient,
    "signal": signalled,
    "standing": standing,
}


def main(case: dict[str, Any], folder: Path) -> None:
    """Run the command, with the case's fault on one rank."""
    if "fault" in case and os.environ["RANK"] == str(case["rank"]):
        FAULTS[case["fault"]](case)
    own = [f"executor.stages={case['d']}", *case.get("words", [])]
    sys.argv = ["quadriga", "train", str(folder / "words.json"), *own]
    sys.argv += ["--work-dir", str(folder / case["name"])]
    command()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
