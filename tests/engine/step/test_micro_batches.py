"""The tensors of a micro-batch go when it is computed, and come once more for a second pass."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
from torch import Tensor

from parallel_worker import tiny_config
from quadriga.contracts import MicroBatch
from quadriga.distributed.process_group import process_group
from quadriga.engine.build import EXACT, build_loader, build_on_meta
from quadriga.engine.preflight import check_start
from quadriga.engine.step.data_parallel import DataParallelExecutor

VIT = ["model.width=32", "model.depth=2", "model.heads=2"]
CLASSES = "objective.tasks.digits.objective.classes=10"


def most_alive(words: list[str]) -> int:
    """Return how many micro-batches have living tensors, at most, when one is taken."""
    config = tiny_config(words)
    made: list[weakref.ref[Tensor]] = []
    alive = [0]

    def watched(batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        for batch in batches:
            made.append(weakref.ref(next(iter(batch.values()))))
            again = batch.again
            alive.append(sum(tensor() is not None for tensor in made))
            yield MicroBatch(dict(batch), again, batch.task, batch.share, batch.others)
            del batch

    with process_group("cpu") as env:
        dataset, plan = check_start(config, env.world_size)
        executor = DataParallelExecutor(build_on_meta(config), config, plan, env)
        steps = range(plan.total_steps)
        with build_loader(config, dataset, plan, env, EXACT) as loader:
            assert len(list(executor.run(watched(loader.batches(steps)), steps))) == 2
    return max(alive)


@pytest.mark.parametrize(
    "words",
    [
        ["recipe=moco_v3_digits", *VIT, "train.accumulate=8"],
        ["recipe=swav_digits", "train.accumulate=8"],
        ["recipe=mixture_digits", "data.blocks=8", "train.batch_size=112", CLASSES],
    ],
    ids=["moco_v3", "swav", "mixture"],
)
def test_a_step_of_eight_micro_batches_holds_three_at_most(words: list[str]) -> None:
    two_steps = ["train.epochs=none", "train.steps=2", "schedule.warmup_epochs=0"]
    if "data.blocks=8" in words:
        two_steps[2] = "schedule.warmup_steps=0"
    assert 1 <= most_alive([*words, *two_steps]) <= 3
