"""The optimizer's state between executors and checkpoints: before the first step, and after."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from checkpoint_fakes import Tensors
from errors import refuses
from parallel_worker import tiny_config
from quadriga.distributed.environment import SINGLE
from quadriga.engine.build import EXACT, build_loader, build_objective
from quadriga.engine.checkpoint.read import stored_tensors
from quadriga.engine.checkpoint.store import CheckpointStore
from quadriga.engine.run_config import CheckpointConfig
from quadriga.engine.run_plan import make_plan
from quadriga.engine.step.data_parallel import DataParallelExecutor


def executor_after(steps: int, start: DataParallelExecutor | None = None) -> DataParallelExecutor:
    """Make a tiny run's steps from 0, or those up to `steps` from where another is at 2."""
    config = tiny_config(["train.steps=8", "ema.decay=0.5"])
    dataset = config.data.build("train")
    plan = make_plan(config, len(dataset), 1)
    objective = build_objective(config, SINGLE.device, config.seed)
    made = start or DataParallelExecutor(objective, config, plan, SINGLE)
    todo = range(2 if start is not None else 0, steps)
    with build_loader(config, dataset, plan, SINGLE, EXACT) as loader:
        list(made.run(loader.batches(todo), todo))
    return made


def state_of(executor: DataParallelExecutor) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in executor.state_dict().items()}


def assert_equal(one: DataParallelExecutor, other: dict[str, torch.Tensor]) -> None:
    found = state_of(one)
    assert found.keys() == other.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    config = CheckpointConfig(asynchronous=False)
    return CheckpointStore(tmp_path / "checkpoints", SINGLE, config, "h")


@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_checkpoint_of_step_0_has_no_optimizer_state(
    store: CheckpointStore, steps_before: int
) -> None:
    start = executor_after(0)
    path = store.save(0, start)
    assert not any(tensor.part == "optimizer" for tensor in stored_tensors(path))
    other = executor_after(steps_before)
    assert store.load(path, other) == 0
    assert_equal(other, state_of(start))


def test_state_is_made_and_read(store: CheckpointStore) -> None:
    path = store.save(2, executor_after(2))
    resumed = executor_after(0)
    assert store.load(path, resumed) == 2
    assert_equal(executor_after(5, resumed), state_of(executor_after(5)))


@pytest.mark.parametrize("key", ["optimizer.decoder.head.weight.other", "optimizer.other.step"])
def test_state_that_the_optimizer_does_not_know_is_named(store: CheckpointStore, key: str) -> None:
    saved = Tensors(0.0)
    saved.state = {**state_of(executor_after(1)), key: torch.ones(())}
    path = store.save(1, saved)
    with refuses(f"{key}: the run"):
        store.load(path, executor_after(0))


def test_state_that_the_checkpoint_lacks_is_named(store: CheckpointStore) -> None:
    saved, key = Tensors(0.0), "optimizer.decoder.head.weight.exp_avg_sq"
    saved.state = state_of(executor_after(1))
    del saved.state[key]
    path = store.save(1, saved)
    with refuses(f"{key}: the checkpoint"):
        store.load(path, executor_after(0))
