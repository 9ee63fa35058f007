"""A small named model, its gradients and the steps that the tests of the optimizers make."""

from __future__ import annotations

import torch
from torch import nn

from quadriga.contracts import OptimizerConfig
from quadriga.randomness import generator

SHAPES = {
    "class_token": (1, 1, 4),
    "patch_projection.weight": (4, 3),
    "patch_projection.bias": (4,),
    "blocks.0.attention.weight": (6, 4),
    "blocks.0.attention.bias": (6,),
    "blocks.0.norm.weight": (4,),
    "blocks.1.attention.weight": (6, 4),
    "blocks.1.output.weight": (4, 6),
    "head.weight": (2, 4),
    "head.bias": (2,),
}

Named = list[tuple[str, nn.Parameter]]


def named_parameters(dtype: torch.dtype = torch.float32) -> Named:
    """Parameters of the names and shapes above, the same values each time."""
    return [(name, nn.Parameter(values(name, shape).to(dtype))) for name, shape in SHAPES.items()]


def values(name: str, shape: tuple[int, ...], step: int = -1) -> torch.Tensor:
    """Return standard normal float64 values that belong to a name and a step."""
    source = generator("test optimizers", name, step)
    return torch.empty(shape, dtype=torch.float64).normal_(generator=source)


def gradient(name: str, parameter: torch.Tensor, step: int) -> torch.Tensor:
    """Return the gradient of a step, in the dtype of the parameter."""
    return values(name, tuple(parameter.shape), step).to(parameter.dtype)


def lr_at(step: int) -> float:
    """Return a learning rate that changes with every step."""
    return 0.05 / (step + 1)


def make_steps(named: Named, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Make optimizer steps as the executor does: gradients, learning rates, step."""
    for step in steps:
        for name, parameter in named:
            parameter.grad = gradient(name, parameter, step)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step) * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def trained(config: OptimizerConfig, steps: int, dtype: torch.dtype = torch.float64) -> Named:
    """Return the parameters after some steps."""
    named = named_parameters(dtype)
    optimizer = config.build(named)
    make_steps(named, optimizer, range(steps))
    return named


def exempt(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter of the names above does not decay by the default rules."""
    return parameter.ndim < 2 or name == "class_token"


def assert_same(named: Named, oracle: dict[str, torch.Tensor], tolerance: float) -> None:
    """Check that every parameter equals the oracle's, and that it has moved."""
    start = dict(named_parameters(named[0][1].dtype))
    assert oracle.keys() == start.keys()
    for name, parameter in named:
        torch.testing.assert_close(
            parameter.detach(), oracle[name], rtol=tolerance, atol=tolerance, msg=name
        )
        assert not torch.equal(parameter, start[name]), name
