"""One rank that saves a state in every form, or loads all that was saved in every form.

    python layout_worker.py FOLDER save|load

A layout is a number of ranks (1, 2, 4) and a form: plain tensors on every rank, shards over a
1-D mesh (FSDP), or shards within groups and copies between them (HSDP). Each rank compares what it
has read with its part of the keyed state, and prints the pairs that were compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from quadriga.contracts import Batch, Executor, Objective, StepOutput
from quadriga.distributed.collectives import barrier
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.engine.checkpoint.store import CheckpointStore, verify
from quadriga.engine.run_config import CheckpointConfig

FORMS = ("plain", "fsdp", "hsdp")


def keyed_state() -> dict[str, Tensor]:
    """Return the state: every shape and type that shards badly."""
    state = {}
    shapes = {
        "even": (8, 6),
        "uneven": (10, 3, 2),
        "fewer_rows_than_ranks": (3, 5),
        "one_row": (1, 7),
        "vector": (9,),
        "empty": (0, 4),
    }
    types = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.float64)
    for place, (name, shape) in enumerate(shapes.items()):
        for dtype in types if name == "uneven" else types[:2]:
            count = torch.Size(shape).numel()
            values = (torch.arange(count) * (place + 3)) % (2 if dtype == torch.bool else 251)
            state[f"objective.{name}.{str(dtype)[6:]}"] = values.view(shape).to(dtype)
    state["optimizer.scalar"] = torch.tensor(17.0)
    state["executor.flag"] = torch.tensor(True)
    state["objective.transposed"] = torch.arange(35.0).view(7, 5).t()
    return state


def on_layout(state: dict[str, Tensor], form: str, world: int) -> dict[str, Tensor]:
    """Return the state as this rank holds it; tensors without dimensions stay plain."""
    if form == "plain":
        return {name: tensor.clone() for name, tensor in state.items()}
    if form == "fsdp":
        mesh, placements = init_device_mesh("cpu", (world,)), [Shard(0)]
    else:
        mesh = init_device_mesh("cpu", (world // 2 or 1, min(world, 2)))
        placements = [Replicate(), Shard(0)]
    return {
        name: distribute_tensor(tensor.clone(), mesh, placements, src_data_rank=None)
        if tensor.dim()
        else tensor.clone()
        for name, tensor in state.items()
    }


class Held(Executor):
    """An executor that is nothing but the tensors it holds."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def run(self, batches: Iterator[Batch], steps: range) -> Iterator[StepOutput]:
        yield from ()

    def frozen(self, weights: str = "raw") -> AbstractContextManager[Objective]:
        """Refuse: there is nothing to evaluate here."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            assert value is self.state[name], f"{name} was not read in place"


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def forms_of(world: int) -> tuple[str, ...]:
    """Return the forms that a number of ranks can have; one rank without a group has no mesh."""
    return FORMS if world > 1 else FORMS[:1]


def save_all(folder: Path, env: DistEnv) -> None:
    """Save on every form, in the background, twice over."""
    for form in forms_of(env.world_size):
        executor = Held(on_layout(keyed_state(), form, env.world_size))
        target = folder / f"{form}-{env.world_size}"
        with CheckpointStore(
            target, env, CheckpointConfig(keep=2), "h", extra={"form": form}
        ) as store:
            store.save(1, executor)
            store.save(2, executor)
        barrier(env)
        if env.is_main:
            for step in (1, 2):
                manifest = verify(target / f"step_{step:08d}")
                assert (manifest.step, manifest.extra) == (step, {"form": form})


def load_all(folder: Path, env: DistEnv) -> list[tuple[str, str]]:
    """Load everything on every form; return the pairs."""
    pairs = []
    for form in forms_of(env.world_size):
        wanted = on_layout(keyed_state(), form, env.world_size)
        blank = {name: torch.ones_like(tensor) for name, tensor in keyed_state().items()}
        with CheckpointStore(folder / "unused", env, CheckpointConfig(), "h") as store:
            for source in sorted(folder.glob("*-*")):
                executor = Held(on_layout(blank, form, env.world_size))
                assert store.load(source / "step_00000002", executor) == 2
                for name, tensor in wanted.items():
                    read = executor.state[name]
                    assert local(read).dtype == local(tensor).dtype
                    assert torch.equal(local(read), local(tensor)), (source.name, form, name)
                pairs.append((source.name, f"{form}-{env.world_size}"))
    return pairs


if __name__ == "__main__":
    with process_group("cpu", timeout_minutes=1) as group:
        if sys.argv[2] == "save":
            save_all(Path(sys.argv[1]), group)
        else:
            print(json.dumps(load_all(Path(sys.argv[1]), group)))
