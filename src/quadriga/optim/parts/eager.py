"""torch's optimizers without what they need for a compiled step, which takes a while to import."""

from __future__ import annotations

import inspect
from typing import TypeVar

import torch

OptimizerT = TypeVar("OptimizerT", bound=torch.optim.Optimizer)


class EagerOptimizer(torch.optim.Optimizer):
    """An optimizer whose methods do not import ``torch._dynamo``.

    torch wraps them for optimizers that are compiled; here only models are. The import would add
    0.6 s to the start of each process.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


def eager(kind: type[OptimizerT]) -> type[OptimizerT]:
    """Return an optimizer of torch as an `EagerOptimizer`."""
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (EagerOptimizer, kind), {"step": step})
