"""Parameter groups by rules for weight decay, layers and learning rates; also for model parts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from quadriga.contracts import OptimizerConfig
from quadriga.errors import UserError

BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
"""Matches the name of a parameter of block number i of a stack."""

EMBEDDINGS = ("embed", "patch_projection", "position", "class_token", "mask_token", "register")
"""Parts of the names of parameters below the first block."""


def layer_ids(names: Sequence[str]) -> tuple[list[int], int]:
    """Number the layers from the input to the head.

    The first stack of blocks defines the layers: embeddings are layer 0, ``blocks.<i>`` is layer
    i + 1, and everything else, including the blocks of a decoder, is the head.

    Args:
        names: Global names of parameters, in the order of the model.

    Returns:
        One layer per name, and the number L of blocks; the head is layer L + 1.

    Raises:
        UserError: No name belongs to a block.
    """
    found = [BLOCK.search(name) for name in names]
    stacks = [
        name[: match.start()] for name, match in zip(names, found, strict=True) if match is not None
    ]
    if not stacks:
        raise UserError(
            "optim.layer_decay must be 1 for a model without parameters named blocks.<i>, "
            "but is lower; remove it"
        )
    first, others = stacks[0], {f"{stack}." for stack in stacks if stack and stack != stacks[0]}
    layers = 1 + max(
        int(match[1])
        for name, match in zip(names, found, strict=True)
        if match is not None and name[: match.start()] == first
    )

    def layer_of(name: str, match: re.Match[str] | None) -> int:
        if match is not None and name[: match.start()] == first:
            return int(match[1]) + 1
        beyond = match is not None or any(name.startswith(stack) for stack in others)
        below = any(part in name for part in EMBEDDINGS)
        return 0 if below and not beyond else layers + 1

    return [layer_of(name, match) for name, match in zip(names, found, strict=True)], layers


Settings = Callable[[str, nn.Parameter], Mapping[str, Any]]
"""(global name, parameter) -> further settings of the parameter's group."""


def is_exempt(
    name: str, parameter: nn.Parameter, no_decay: Sequence[str], decay_vectors: bool = False
) -> bool:
    """Return whether a parameter has no weight decay: by its name, or as a scalar or vector."""
    is_vector = parameter.ndim < 2 and not decay_vectors
    return is_vector or any(part in name for part in no_decay)


def lr_scales_of(
    names: Sequence[str], layer_decay: float, lr_scales: Mapping[str, float]
) -> list[float]:
    """Return the factor of each parameter's learning rate.

    With layer decay d and L blocks, layer i has ``d^(L + 1 - i)`` (Clark et al., ELECTRA,
    arXiv:2003.10555; Bao et al., BEiT, arXiv:2106.08254); see `layer_ids`.

    Args:
        names: Global names of the trainable parameters.
        layer_decay: Factor from a layer to the one below it; 1 for none.
        lr_scales: Part of a name -> factor; several matches multiply.

    Returns:
        One factor per name.

    Raises:
        UserError: A part is in no name, or there are no layers to decay over.
    """
    _require_parts("lr_scales", lr_scales, names)
    own = [
        math.prod((factor for part, factor in lr_scales.items() if part in name), start=1.0)
        for name in names
    ]
    if layer_decay == 1.0:
        return own
    ids, layers = layer_ids(names)
    return [
        scale * layer_decay ** (layers + 1 - layer) for scale, layer in zip(own, ids, strict=True)
    ]


def _require_parts(field: str, parts: Iterable[str], names: Sequence[str]) -> None:
    for part in parts:
        if not any(part in name for name in names):
            raise UserError(
                f"optim.{field} must name parts of trainable parameters, but {part!r} is in "
                f"none of them, such as {names[0] if names else '(none)'}; mend or remove it"
            )


def decay_groups(
    named_parameters: Sequence[tuple[str, nn.Parameter]],
    weight_decay: float,
    no_decay: Sequence[str],
    layer_decay: float = 1.0,
    lr_scales: Mapping[str, float] = MappingProxyType({}),
    settings: Settings | None = None,
    constant_lr: Sequence[str] = (),
    decay_vectors: bool = False,
) -> list[dict[str, Any]]:
    """Split trainable parameters into the fewest groups that the rules allow.

    Args:
        named_parameters: Global names and parameters; those without gradient are ignored.
        weight_decay: Weight decay of the parameters that are not exempt.
        no_decay: A parameter is exempt from weight decay if its name contains one of these, or
            if it has fewer than two dimensions and not `decay_vectors`.
        layer_decay: Factor of the learning rate from a layer to the one below it.
        lr_scales: Part of a name -> factor of the learning rate.
        settings: Further settings of a parameter's group; a ``lr_scale`` among them multiplies.
        constant_lr: A parameter's learning rate is constant if its name contains one of these.
        decay_vectors: Whether scalars and vectors have weight decay.

    Returns:
        Non-empty groups, those with weight decay first, then in the order of their first
        parameter, each with ``params``, ``weight_decay``, ``lr_scale``, ``constant_lr`` and those
        of `settings`.

    Raises:
        UserError: A rule names a part or a layer that no parameter belongs to.
    """
    trained = [(name, p) for name, p in named_parameters if p.requires_grad]
    names = [name for name, _ in trained]
    scales = lr_scales_of(names, layer_decay, lr_scales)
    _require_parts("constant_lr", constant_lr, names)
    merged: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {}
    for (name, parameter), scale in zip(trained, scales, strict=True):
        added = dict(settings(name, parameter)) if settings is not None else {}
        exempt = is_exempt(name, parameter, no_decay, decay_vectors)
        rules = {
            **added,
            "weight_decay": 0.0 if exempt else weight_decay,
            "lr_scale": scale * added.get("lr_scale", 1.0),
            "constant_lr": any(part in name for part in constant_lr),
        }
        group = merged.setdefault(tuple(sorted(rules.items())), {"params": [], **rules})
        group["params"].append(parameter)
    return sorted(merged.values(), key=lambda group: group["weight_decay"] == 0.0)


def groups_of(
    config: OptimizerConfig,
    named_parameters: Sequence[tuple[str, nn.Parameter]],
    settings: Settings | None = None,
) -> list[dict[str, Any]]:
    """Return `decay_groups` by the rules of a config."""
    return decay_groups(
        named_parameters,
        config.weight_decay,
        config.no_decay,
        config.layer_decay,
        config.lr_scales,
        settings,
        config.constant_lr,
        config.decay_vectors,
    )


def require_below_one(name: str, rates: Sequence[float]) -> None:
    """Check the decay rates of moments.

    Raises:
        ValueError: One of them is outside [0, 1); the message starts with `name`.
    """
    if not all(0 <= rate < 1 for rate in rates):
        raise ValueError(f"{name} must be at least 0 and below 1, but are {list(rates)}")


def make_state(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor]) -> None:
    """Make the optimizer create the state of some of its parameters before their first step.

    A step with zero gradients and learning rate 0 creates it, so its names, shapes and devices are
    those of any step. The parameters do not change; the values of the state are arbitrary.

    Args:
        optimizer: None of its parameters has a gradient.
        parameters: The parameters that get state.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = lr


def partial_optimizer(
    config: OptimizerConfig,
    everything: Mapping[str, nn.Parameter],
    own: Mapping[str, nn.Parameter],
) -> torch.optim.Optimizer:
    """Make the optimizer of a part of a model, with rules that refer to the whole model.

    Args:
        config: The rules.
        everything: All trainable parameters of the whole model by global name, on any device.
        own: The part's parameters, by the same names.
    """
    device = next(iter(own.values())).device if own else torch.device("cpu")
    named = []
    for name, parameter in everything.items():
        if name not in own:
            # A placeholder of the right shape without memory: rules use only names and dimensions.
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
