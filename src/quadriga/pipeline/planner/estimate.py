"""A profile computed from a device's data sheet; it needs no device, memory or data.

Each operation of the forward and the backward pass takes the maximum of its arithmetic time, its
memory-traffic time (the roofline model; Williams et al., CACM 2009) and a kernel's launch time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from quadriga import randomness
from quadriga.contracts import Batch, Stage
from quadriga.engine.meters.cost import FusedAttention
from quadriga.engine.run_config import RunConfig
from quadriga.engine.step.blocks import apply_recompute
from quadriga.engine.step.precision import reduced_precision
from quadriga.pipeline.planner.profile import (
    DeviceSpec,
    Facts,
    Measurement,
    Profile,
    Recompute,
    UnitCost,
    Units,
    cut,
    forward,
    sizes,
    splittable,
)

STEP_TRAFFIC = 7
"""Bytes of memory traffic per parameter byte of an optimizer with two moments: weights and moments
are read and written, gradients are read."""


def estimate_profile(config: RunConfig, spec: DeviceSpec, micro_sizes: Sequence[int]) -> Profile:
    """Compute the costs of a run's parts on a device.

    Args:
        config: The run's config.
        spec: The device.
        micro_sizes: Micro-batch sizes in samples.

    Raises:
        UserError: The objective has no stages, or the device lacks the run's precision.
    """
    spec.peak(config.train.precision)
    whole = splittable(config)
    parts, shared = sizes(cut(whole), config.optim)
    found = [
        _measure(config, spec, size, recompute)
        for size in micro_sizes
        for recompute in ("none", "full")
    ]
    return Profile(
        facts=Facts(
            recipe=config.name,
            method="computed",
            device=spec.name,
            precision=config.train.precision,
            torch=torch.__version__,
            threads=1,
            batches="an example",
        ),
        blocks=whole.depth,
        input=parts[0],
        block=parts[1],
        head=parts[2],
        shared_bytes=shared,
        has_average=config.ema.decay is not None,
        measurements=tuple(found),
        update_seconds=STEP_TRAFFIC / (spec.memory_bandwidth * spec.memory_efficiency),
        network=spec.network(),
        memory=spec.memory,
    )


def _measure(config: RunConfig, spec: DeviceSpec, size: int, recompute: Recompute) -> Measurement:
    # Fake CPU tensors, since the meta device has no autocast.
    place = torch.device("cpu")
    with FakeTensorMode(), randomness.micro_batch(0, 0, 0, 0):
        with place:
            objective = config.objective.build(config.model)
        objective.train()
        apply_recompute(objective, recompute)
        units: Units = cut(objective)  # type: ignore[arg-type]  # `splittable` has checked it
        batch = config.views.build("train").example(size, place)
        costs: list[UnitCost] = []
        hidden: Tensor | None = None
        boundary = 0
        for unit in units:
            cost, output = _pass(config, spec, unit, hidden, batch)
            costs.append(cost)
            hidden = output
            if unit is units.block:
                boundary = output.numel() * output.element_size()
        batch_bytes = sum(t.numel() * t.element_size() for t in batch.values())
    return Measurement(
        micro_batch=size,
        recompute=recompute,
        boundary_bytes=boundary,
        batch_bytes=batch_bytes,
        input=costs[0],
        block=costs[1],
        head=costs[2],
    )


def _pass(
    config: RunConfig, spec: DeviceSpec, unit: Stage, hidden: Tensor | None, batch: Batch
) -> tuple[UnitCost, Tensor]:
    if hidden is not None:
        hidden = hidden.detach().requires_grad_(True)
    place = torch.device("cpu")
    leaves: list[Tensor] = [p for p in unit.parameters() if p.requires_grad]
    leaves += [hidden] if hidden is not None else []
    with FusedAttention():
        with Roofline(spec) as there:
            output, kept = forward(unit, hidden, batch, reduced_precision(place, config.train))
        with Roofline(spec) as back:
            torch.autograd.grad(output, leaves, torch.ones_like(output), allow_unused=True)
    cost = UnitCost(forward=there.seconds, backward=back.seconds, kept=kept)
    return cost, output.detach()


@final
class Roofline(TorchDispatchMode):
    """A context that sums the predicted seconds of the operations inside it on a device."""

    def __init__(self, spec: DeviceSpec) -> None:
        """Start at 0 seconds."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._spec = spec
        self.seconds = 0.0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not func.is_view:
            self.seconds += self._seconds_of(func, args, kwargs, result)
        return result

    def _seconds_of(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> float:
        tensors = [t for t in tree_leaves((args, dict(kwargs), result)) if isinstance(t, Tensor)]
        if not tensors:
            return 0.0
        spec = self._spec
        count = flop_registry.get(func._overloadpacket)
        arithmetic = 0.0
        if count is not None:
            precision = str(tensors[0].dtype).removeprefix("torch.")
            peak = spec.peak(precision) if precision in ("float16", "bfloat16") else spec.float32
            flops = count(*args, **kwargs, out_val=result)
            arithmetic = flops / (peak * spec.product_efficiency)
        moved = sum(t.numel() * t.element_size() for t in tensors)
        traffic = moved / (spec.memory_bandwidth * spec.memory_efficiency)
        return max(arithmetic, traffic, spec.kernel_seconds)
