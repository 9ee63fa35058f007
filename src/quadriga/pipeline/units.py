"""A run's objective as the planner sees it: the input part, one block and the heads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from quadriga.contracts import Batch, LossOutput, OptimizerConfig, Stage
from quadriga.contracts.objective import Splittable
from quadriga.engine.build import build_on_meta
from quadriga.engine.meters.cost import LiveStorages
from quadriga.engine.recompute import apply_recompute
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.optim.parts.groups import materialise_state
from quadriga.pipeline.planner.profile import Recompute, UnitSize


class Units(NamedTuple):
    """Three stages of one objective; between the block and the heads others are left out."""

    input: Stage
    block: Stage
    head: Stage


def splittable(config: RunConfig) -> Splittable:
    """Make the objective of a run on the meta device and check that it can be cut.

    Raises:
        UserError: It has no stages.
    """
    objective = build_on_meta(config)
    if not isinstance(objective, Splittable):
        kind = config.objective.kind()
        if config.modular is not None:
            kind = f"modular.kind={config.modular.kind()}"
        raise UserError(
            f"the recipe must be one that can be cut into stages, but {kind} has no stages; plan "
            "another recipe"
        )
    return objective


def cut(objective: Splittable) -> Units:
    """Cut an objective into the parts."""
    rest = objective.depth - 1
    stages = objective.stages([0, 1, rest, 0] if rest else [0, 1, 0])
    return Units(stages[0], stages[1], stages[-1])


def make_units(config: RunConfig, device: torch.device, recompute: Recompute) -> Units:
    """Make the parts of a run's objective with their initial values.

    Only what they hold takes memory: one block, however many there are.

    Raises:
        UserError: The objective has no stages.
    """
    objective = splittable(config)
    assert isinstance(objective, nn.Module)
    apply_recompute(objective, recompute)
    units = cut(objective)
    for unit in units:
        unit.to_empty(device=device)
    for unit in units:  # afterwards, since two parts may hold the same parameter
        unit.initialise(config.seed)
        unit.train()
    return units


def forward(
    unit: Stage,
    hidden: Tensor | None,
    batch: Batch,
    reduced: contextlib.AbstractContextManager[object],
) -> tuple[Tensor, int]:
    """Compute a part's forward pass, and count what it keeps for the backward pass.

    Args:
        unit: The part.
        hidden: Its input.
        batch: The micro-batch.
        reduced: The context of a reduced precision. It is left before anything is counted: its
            copies of the weights count only where they are kept.

    Returns:
        What it sends on, or its loss; and the bytes: its output is among them, but not its
        input, its parameters and the batch.
    """
    with LiveStorages() as made, reduced:
        result = unit(hidden, batch)
    output: Tensor = result.loss if isinstance(result, LossOutput) else result
    known = [*unit.parameters(), *unit.buffers(), *batch.values()]
    return output, made.total(known)


def sizes(units: Units, optim: OptimizerConfig) -> tuple[list[UnitSize], int]:
    """Return what the parts hold, and the trainable bytes that input and heads share.

    The optimizer's state is counted on stand-ins with the parameters' names and few elements.
    """
    trained = [
        {name: p for name, p in unit.named_parameters() if p.requires_grad} for unit in units
    ]
    # Together: an optimizer's rules may ask for names that one part alone does not have.
    states = _state_rates({name: p for named in trained for name, p in named.items()}, optim)
    found = [
        UnitSize(
            parameter_bytes=_bytes([*unit.parameters(), *unit.buffers()]),
            trainable_bytes=_bytes(named.values()),
            state_bytes=sum(p.numel() * states[name] for name, p in named.items()),
        )
        for unit, named in zip(units, trained, strict=True)
    ]
    shared = trained[0].keys() & trained[-1].keys()
    return found, _bytes(trained[0][name] for name in shared)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _state_rates(named: Mapping[str, nn.Parameter], optim: OptimizerConfig) -> dict[str, int]:
    """Return the bytes of optimizer state per element of each parameter."""
    # Layer-wise decay counts the layers of the whole model, and has no state.
    rules = optim.override({"layer_decay": 1.0, "lr_scales": "{}"})
    small = {
        name: nn.Parameter(torch.zeros([min(size, 2) for size in p.shape]))
        for name, p in named.items()
    }
    optimizer = rules.build(list(small.items()))
    materialise_state(optimizer)
    return {
        name: sum(
            value.element_size()
            for value in optimizer.state[parameter].values()
            if isinstance(value, Tensor) and value.dim() and value.shape == parameter.shape
        )
        for name, parameter in small.items()
    }
