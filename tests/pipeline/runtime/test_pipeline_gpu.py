"""2BW on one GPU: the update on a stream of its own, against the recurrence on the CPU."""

from __future__ import annotations

import pytest
import torch
from cases import config_of, plan_of, reference
from toy import make_toy, toy_batch

from quadriga.distributed.environment import DistEnv

STEPS = 12


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [False, "selective"])
def test_2bw_on_a_gpu_equals_the_reference(recompute: bool | str) -> None:
    case = {"d": 1, "w": 1, "m": 3, "optimizer": "adamw", "clip": 0.05, "steps": STEPS}
    case |= {"recompute": recompute, "ema": 0.9}
    env = DistEnv(0, 1, 0, 1, torch.device("cuda", 0))
    config = config_of(case)
    executor = config.executor.build(make_toy(case), config, plan_of(case), env)
    batches = (
        {name: tensor.to(env.device) for name, tensor in toy_batch(step, 0, micro).items()}
        for step in range(STEPS)
        for micro in range(3)
    )
    losses = [float(output.metrics["loss"]) for output in executor.run(batches, range(STEPS))]
    versions, wanted = reference(case)
    assert losses == pytest.approx(wanted, rel=1e-4)
    state = executor.state_dict()
    for name, tensor in versions[-1].items():
        torch.testing.assert_close(state[f"objective.{name}"].cpu(), tensor, rtol=1e-3, atol=1e-4)
    executor.close()
