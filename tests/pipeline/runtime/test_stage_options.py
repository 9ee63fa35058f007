"""What a stage keeps and computes again, in one process."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from cases import config_of, plan_of
from toy import ToyBlock, make_toy, toy_batch

from errors import refuses
from quadriga.contracts import StepOutput
from quadriga.distributed.environment import SINGLE
from quadriga.engine.meters.phase_timer import PhaseTimer
from quadriga.pipeline.runtime import stage_runner
from quadriga.pipeline.runtime.partition import Groups
from quadriga.pipeline.runtime.stage_runner import StageRunner
from quadriga.pipeline.schedules import SCHEDULES
from quadriga.pipeline.schedules.actions import Place

STEPS = 4


def make_steps(case: dict[str, Any], seen: Any = None) -> list[StepOutput]:
    """Make the steps of a case with one stage."""
    case = {"d": 1, "w": 1, "m": 2, "steps": STEPS, **case}
    phase_timer = PhaseTimer()
    config = config_of(case)
    executor = config.executor.build(
        make_toy(case), config, plan_of(case), SINGLE, phase_timer=phase_timer
    )
    batches = (toy_batch(step, 0, micro) for step in range(STEPS) for micro in range(case["m"]))
    outputs = []
    for output in executor.run(batches, range(STEPS)):
        outputs.append(output)
        assert (phase_timer.step, phase_timer.phase) == (output.step, "log")
    executor.close()
    return outputs


@pytest.mark.parametrize(
    ("case", "copies", "passes"),
    [
        ({"schedule": "2bw"}, 2, 1),
        ({"schedule": "2bw", "recompute": "selective"}, 2, 2),
        ({"schedule": "gpipe", "recompute": True}, 1, 2),
        ({"schedule": "1f1b", "recompute": True}, 1, 2),  # block by block
        ({"schedule": "2bw", "recompute": True}, 2, 2),
    ],
)
def test_each_version_computes_its_own_blocks_so_often(
    monkeypatch: pytest.MonkeyPatch, case: dict[str, Any], copies: int, passes: int
) -> None:
    calls: list[int] = []
    forward = ToyBlock.forward

    def counted(block: ToyBlock, hidden: Any) -> Any:
        calls.append(id(block))
        return forward(block, hidden)

    monkeypatch.setattr(ToyBlock, "forward", counted)
    make_steps({**case, "dropout": 0.3})
    assert len(calls) == STEPS * 2 * 4 * passes
    assert len(set(calls)) == 4 * copies


def test_the_values_that_were_sent_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[weakref.ref[Any]] = []

    class Link:
        def __init__(self, *arguments: Any) -> None:
            pass

        def send(self, tensor: torch.Tensor, most: int, says_type: bool = False) -> None:
            sent.append(weakref.ref(tensor.untyped_storage()))

        def expect(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
            self.shape = shape

        def take(self) -> torch.Tensor:
            return torch.ones(self.shape)

    monkeypatch.setattr(stage_runner, "Sender", Link)
    monkeypatch.setattr(stage_runner, "Receiver", Link)
    case = {"d": 2, "w": 1, "m": 2, "steps": 1, "schedule": "1f1b"}
    groups = Groups(0, 0, None, 1, None, None, None, None, None, {}, None, None)
    place = Place(0, 2, 2)
    in_flight = SCHEDULES["1f1b"]().in_flight(place)
    runner = StageRunner(config_of(case), groups, SINGLE, PhaseTimer(), 2, in_flight)
    stage = make_toy(case, "cpu").stages([1, 3])[0]
    runner.forward(stage, toy_batch(0, 0, 0), 0, 0)
    # The map that makes the output keeps its input alone.
    assert sent[0]() is None
    runner.backward(0, 0)
    assert all(p.grad is not None for p in stage.parameters())


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"schedule": "torch_1f1b", "recompute": "selective"}, ("train.recompute", "none")),
        ({"schedule": "2bw", "per_rank": 2}, ("executor.stages_per_rank", "1")),
    ],
)
def test_what_a_schedule_cannot_do_is_refused(
    changes: dict[str, Any], fragments: tuple[object, ...]
) -> None:
    case = {"d": 2, "w": 1, "m": 4, **changes}
    config = config_of(case)
    with refuses(*fragments):
        config.executor.check(config, make_toy(case), 2)
