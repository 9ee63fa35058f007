"""One rank of the test of the collectives: call each, write down what came back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from quadriga.distributed.collectives import (
    all_gather_values,
    all_reduce_sum,
    barrier,
    broadcast_value,
    from_main,
    on_all,
)
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.errors import UserError


def fail_everywhere(env: DistEnv) -> None:
    """Fail, whichever rank this is."""
    raise UserError(f"rank {env.rank} cannot")


def fail_on_one(env: DistEnv) -> None:
    """Fail on rank 1 alone."""
    if env.rank == 1:
        fail_everywhere(env)


def collect(env: DistEnv) -> dict[str, Any]:
    """Return what each collective returned on this rank."""
    calls = []

    def once() -> int:
        calls.append(env.rank)
        return 100 + env.rank

    found: dict[str, Any] = {
        "sum": all_reduce_sum(torch.tensor([env.rank, 5.0 + env.rank]), env).tolist(),
        "broadcast": broadcast_value(f"from {env.rank}", env),
        "gathered": all_gather_values((env.rank, ["zero", "one"][env.rank]), env),
        "from_main": from_main(once, env),
        "calls": len(calls),
    }
    found["on_all"] = on_all(lambda: env.rank, env)
    for name, function in (("error", fail_everywhere), ("lone error", fail_on_one)):
        collective = from_main if name == "error" else on_all
        try:
            collective(lambda function=function: function(env), env)
        except UserError as error:
            found[name] = [str(error), error.on_every_rank]
    barrier(env)
    # No rank is left in a collective of its own: the next one still meets.
    found["after"] = int(all_reduce_sum(torch.ones(()), env))
    return found


if __name__ == "__main__":
    with process_group("cpu") as env:
        result = collect(env)
        (Path(sys.argv[1]) / f"{env.rank}.json").write_text(json.dumps(result))
