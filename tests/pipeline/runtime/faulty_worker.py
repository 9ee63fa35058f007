"""The command on forked ranks of a pipeline, with one fault in it: one import for all cases.

    python faulty_worker.py CASES.json FOLDER

A case is a dictionary: ``name``, ``d``, ``w``, ``words`` (overrides), ``fault`` (a function of
`FAULTS`), ``rank`` and ``step`` (where it strikes; a list of steps strikes at each of them), and
``times``. What each rank printed is in ``FOLDER/NAME.RANK.txt``; prints the exit codes of each
case and the seconds from the first rank's end to the last one's.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline_fakes import words_run
from quadriga.cli.entry import main as command
from quadriga.config.provenance import Resolved
from quadriga.contracts import LossOutput
from quadriga.pipeline.runtime.stage_runner import StageRunner
from quadriga.pipeline.runtime.updates import Updates
from ranks import free_port

LIMIT = 60.0
"""Seconds after which a rank counts as one that would never have ended: its code is 999."""


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


def become(case: dict[str, Any], rank: int, port: int, folder: Path) -> None:
    """Make this process a rank of a case, up to the command itself."""
    ranks = case["d"] * case["w"]
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if ranks == 1:
        del os.environ["RANK"], os.environ["WORLD_SIZE"]
    with (folder / f"{case['name']}.{rank}.txt").open("ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    faulthandler.enable()  # a rank that had to be ended tells where it stood
    torch.set_num_threads(1)
    if "fault" in case and rank == case["rank"]:
        FAULTS[case["fault"]](case)
    work_dir = str(folder / case["name"])
    own = [f"pipeline.stages={case['d']}"]
    sys.argv = ["quadriga", "train", str(folder / "words.json"), *own, *case.get("words", [])]
    sys.argv += ["--work-dir", work_dir]


def start(cases: list[dict[str, Any]], folder: Path) -> bool:
    """Run the cases one after the other; True in a forked rank, which is to go on."""
    importlib.import_module("quadriga.cli.train")  # once, and not on each rank
    told = {}
    for case in cases:
        port, children = free_port(), {}
        for rank in range(case["d"] * case["w"]):
            child = os.fork()
            if child == 0:
                become(case, rank, port, folder)
                return True
            children[child] = rank
        codes = {}
        deadline = time.monotonic() + LIMIT
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in children:
                codes[children.pop(pid)] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                for child, rank in children.items():
                    os.kill(child, signal.SIGABRT)
                    os.waitpid(child, 0)
                    codes[rank] = 999
                children = {}
            else:
                time.sleep(0.01)
        told[case["name"]] = [codes[rank] for rank in sorted(codes)]
    print(json.dumps(told))
    return False


def write_config(folder: Path) -> None:
    """Write the config that the cases change."""
    config = words_run(
        train__steps=8,
        train__accumulate=4,
        train__batch_size=16,
        checkpoint__every_steps=3,
        pipeline__schedule="2bw",
        model__dropout=0.1,
        optim__clip_norm=1.0,
        evaluation__protocols=[],
    )
    (folder / "words.json").write_text(Resolved.of(config, "test").as_json())


if __name__ == "__main__":
    where = Path(sys.argv[2])
    write_config(where)
    if start(json.loads(Path(sys.argv[1]).read_text()), where):
        command()
