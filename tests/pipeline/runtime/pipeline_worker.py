"""One rank that runs cases, all of the same number of ranks.

    python pipeline_worker.py CASES.json FOLDER

Each case leaves ``FOLDER/NAME/rank_R.pt`` with this rank's state and what the steps reported.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from cases import config_of, plan_of
from toy import make_toy, toy_batch

from quadriga.distributed.environment import DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.pipeline.runtime import staged
from quadriga.pipeline.runtime.stage_runner import Sender

SEND = Sender.send


def run_case(case: dict[str, Any], env: DistEnv, folder: Path) -> None:
    """Run one case on this rank."""
    sent = count_messages()
    config = config_of(case)
    executor: Any = config.executor.build(make_toy(case), config, plan_of(case), env)
    first, last = case.get("range", [0, case["steps"]])
    if "load_from" in case:
        merged = stored(folder / case["load_from"])
        executor.match_state(merged)
        executor.load_state_dict({name: merged[name] for name in executor.state_dict()})
    cuts = [first, *(cut for cut in case.get("cuts", []) if first < cut < last), last]
    outputs = []
    for start, stop in pairwise(cuts):
        batches = (
            toy_batch(step, executor.groups.replica, micro)
            for step in range(start, stop)
            for micro in range(case["m"])
        )
        outputs += list(executor.run(batches, range(start, stop)))
        assert next(batches, None) is None
    assert [output.step for output in outputs] == list(range(first, last))
    path = folder / case["name"] / f"rank_{env.rank}.pt"
    path.parent.mkdir(exist_ok=True)
    torch.save(
        {
            "state": {name: t.detach().clone() for name, t in executor.state_dict().items()},
            "losses": [float(output.metrics["loss"]) for output in outputs],
            "hits": [float(output.metrics["hits"]) for output in outputs],
            "norms": [float(output.grad_norm) for output in outputs],
            "sent": sent,
        },
        path,
    )
    executor.close()


def count_messages() -> list[int]:
    """Return a list of how many messages a sender keeps, after each one from now on."""
    held: list[int] = []
    send = SEND

    def counted(self: Sender, *arguments: Any, **named: Any) -> None:
        send(self, *arguments, **named)
        held.append(self.under_way)

    Sender.send = counted  # type: ignore[method-assign]
    return held


def stored(folder: Path) -> dict[str, Any]:
    """Return what all ranks of another case have left."""
    merged: dict[str, Any] = {}
    for path in sorted(folder.glob("rank_*.pt")):
        for name, tensor in torch.load(path, weights_only=True)["state"].items():
            assert name not in merged or torch.equal(merged[name], tensor), name
            merged[name] = tensor
    return merged


def main(cases: list[dict[str, Any]], folder: Path) -> None:
    """Join the group, run the cases, and leave."""
    # The same groups for all cases of a topology: to make them takes longer than to use them.
    made: dict[Any, Any] = {}
    make = staged.make_groups

    def make_once(topology, env, ties):
        key = (topology.ranks, tuple(ties))
        if key not in made:
            made[key] = make(topology, env, ties)
        return made[key]

    staged.make_groups = make_once
    with process_group("cpu", timeout_minutes=1) as env:
        for case in cases:
            run_case(case, env, folder)


if __name__ == "__main__":
    given, where = Path(sys.argv[1]), Path(sys.argv[2])
    main(json.loads(given.read_text()), where)
