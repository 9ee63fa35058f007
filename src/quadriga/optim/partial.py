"""The optimizer of a part of a model: a pipeline's stage, or a module that is trained apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from quadriga.contracts import OptimizerConfig


def partial_optimizer(
    config: OptimizerConfig,
    everything: Mapping[str, nn.Parameter],
    own: Mapping[str, nn.Parameter],
) -> torch.optim.Optimizer:
    """Make the optimizer of a part of a model by rules that see the whole: its layers, its names.

    Args:
        config: The rules.
        everything: All trainable parameters of the whole by global name, on any device.
        own: Those of the part, by the same names.
    """
    device = next(iter(own.values())).device if own else torch.device("cpu")
    named = []
    for name, parameter in everything.items():
        if name not in own:
            # Of the right shape and without memory: rules look at names and dimensions.
            blank = torch.zeros((), device=device).expand(parameter.shape)
            named.append((name, nn.Parameter(blank)))
        else:
            named.append((name, own[name]))
    optimizer = config.build(named)
    kept = {id(parameter) for parameter in own.values()}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) in kept]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    return optimizer
