"""Make the same steps with whole and with sharded parameters, on every rank, and compare."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from optim_modules import Named, lr_at, named_parameters, values
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from quadriga.config.base import construct
from quadriga.contracts import OptimizerConfig
from quadriga.engine.step.state import copy_state, match_optimizer_state, optimizer_state


def steps_of(kind: str, named: Named, shard: bool) -> None:
    """Make three steps; the sharded ones go on from a copy of their state after the first."""
    config = construct(OptimizerConfig, {"kind": kind})  # type: ignore[type-abstract]
    optimizer = config.build(named)
    for step in range(3):
        if shard and step == 1:
            before, optimizer = optimizer_state(optimizer, dict(named)), config.build(named)
            match_optimizer_state(optimizer, dict(named), before)
            copy_state(optimizer_state(optimizer, dict(named)), before)
        for name, parameter in named:
            gradient = values(name, tuple(parameter.shape), step).float()
            parameter.grad = sharded(gradient) if shard else gradient
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step) * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def sharded(tensor: torch.Tensor) -> DTensor:
    """Cut a tensor along its first dimension over all ranks, as FSDP2 does."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return distribute_tensor(tensor, mesh, [Shard(0)])


def main() -> None:
    """Compare every kind named on the command line."""
    dist.init_process_group("gloo")
    for kind in sys.argv[1:]:
        whole = named_parameters()
        parts = [(name, nn.Parameter(sharded(p.detach().clone()))) for name, p in whole]
        steps_of(kind, whole, shard=False)
        steps_of(kind, parts, shard=True)
        for (name, one), (_, other) in zip(whole, parts, strict=True):
            # bfloat16 in Muon's iteration is the same on every rank; norms are summed in parts.
            torch.testing.assert_close(
                other.full_tensor(), one, rtol=1e-5, atol=1e-6, msg=f"{kind} {name}"
            )
        print("equal", kind)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
