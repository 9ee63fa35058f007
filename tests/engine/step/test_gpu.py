"""The engine on a GPU: the steps of the CPU, in every precision, whole and sharded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from parallel_worker import tiny_config
from quadriga.contracts import Batch
from quadriga.distributed.environment import SINGLE, DistEnv
from quadriga.engine.build import build_objective
from quadriga.engine.checkpoint.store import CheckpointStore
from quadriga.engine.run_config import CheckpointConfig, TrainConfig
from quadriga.engine.run_plan import make_plan
from quadriga.engine.step import data_parallel
from quadriga.engine.step.data_parallel import DataParallelExecutor
from quadriga.engine.step.sharding import Layout, Sharded
from ranks import free_port

pytestmark = pytest.mark.gpu

STEPS = range(4)


def cuda() -> DistEnv:
    return DistEnv(0, 1, 0, 1, torch.device("cuda:0"))


def executor_on(env: DistEnv, *words: str) -> tuple[DataParallelExecutor, Batch]:
    config = tiny_config(["optim.eps=1e-4", "optim.clip_norm=0.05", *words])
    plan = make_plan(config, 1000, 1)
    objective = build_objective(config, env.device, config.seed)
    source = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randn(8, 3, 16, 16, generator=source).to(env.device),
        "key": torch.arange(8, device=env.device),
        "index": torch.arange(8, device=env.device),
    }
    return DataParallelExecutor(objective, config, plan, env), batch


def losses(executor: DataParallelExecutor, batch: Batch) -> torch.Tensor:
    outputs = executor.run(iter([batch] * len(STEPS)), STEPS)
    return torch.stack([output.metrics["loss"].cpu() for output in outputs])


@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        ((), 1e-3),
        (("train.precision=bfloat16",), 0.02),
        (("train.precision=float16",), 0.02),
        (("train.precision=bfloat16", "train.recompute=selective"), 0.02),
    ],
)
def test_a_gpu_makes_the_steps_of_the_cpu(words: tuple[str, ...], tolerance: float) -> None:
    expected = losses(*executor_on(SINGLE))
    torch.testing.assert_close(
        losses(*executor_on(cuda(), *words)), expected, rtol=tolerance, atol=0
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_shards_on_a_gpu_train_like_the_whole(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    words = (f"train.precision={precision}", "train.parallel=fsdp")
    expected = losses(*executor_on(cuda(), *words))

    def sharded(objective: object, train: TrainConfig, env: DistEnv) -> Layout:
        return Sharded(objective, train, env)  # type: ignore[arg-type]

    store = f"tcp://127.0.0.1:{free_port()}"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=store, rank=0, world_size=1)
    try:
        monkeypatch.setattr(data_parallel, "make_layout", sharded)
        found = losses(*executor_on(cuda(), *words))
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(
        found, expected, rtol=1e-3 if precision == "float32" else 0.02, atol=0
    )


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_gpu_saves_is_what_it_loads(tmp_path: Path, asynchronous: bool) -> None:
    executor, batch = executor_on(cuda(), "ema.decay=0.9")
    losses(executor, batch)
    saved = {name: tensor.clone() for name, tensor in executor.state_dict().items()}
    config = CheckpointConfig(asynchronous=asynchronous)
    with CheckpointStore(tmp_path, cuda(), config, "") as store:
        store.save(4, executor)
        losses(executor, batch)  # goes on while the state is written
        store.wait()
        other, _ = executor_on(cuda(), "ema.decay=0.9")
        assert store.load(tmp_path / "step_00000004", other) == 4
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor.cpu(), saved[name].cpu()), name
