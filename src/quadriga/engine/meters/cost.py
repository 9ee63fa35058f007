"""Cost of a training step, measured on the meta device without memory or data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from quadriga import randomness
from quadriga.contracts import Batch, Objective


@final
@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of the forward and backward pass of one micro-batch."""

    samples: int
    """Samples of the micro-batch."""
    parameters: int
    """Number of parameters, including frozen ones; shared ones count once."""
    trainable_parameters: int
    parameter_bytes: int
    """Bytes of all parameters and buffers."""
    trainable_bytes: int
    """Bytes of the trainable parameters, which equal those of their gradients."""
    forward_flops: int
    """FLOPs of the forward pass: matrix products, convolutions and attention; a multiplication and
    an addition count as two."""
    training_flops: int
    """FLOPs of the forward and the backward pass as executed: the backward pass of fused attention
    recomputes the scores."""
    model_flops: int
    """`training_flops` without the recomputation of fused attention: the numerator of model FLOP/s
    utilisation (MFU)."""
    activation_bytes: int
    """Bytes that the forward pass keeps for the backward pass, without parameters and batch."""
    batch_bytes: int
    """Bytes of the micro-batch."""


@final
@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one rank at the start of the backward pass, without the kernels' workspaces."""

    parameters: int
    """Parameters and buffers."""
    gradients: int
    optimizer: int
    ema: int
    """The moving average of the weights."""
    gathered: int
    """Gathered weights, where the ranks hold shards."""
    activations: int
    """Activations kept for the backward pass, and the batch."""

    @property
    def total(self) -> int:
        """Sum of the parts."""
        state = self.parameters + self.gradients + self.optimizer + self.ema
        return state + self.gathered + self.activations


def measure(objective: Objective, example: Batch) -> Cost:
    """Run one micro-batch forward and backward on the meta device and return its cost.

    Attention is measured as the fused kernels execute it, which keep no tensor of scores.

    Args:
        objective: On the meta device; put into training mode and otherwise unchanged.
        example: A micro-batch on the meta device.
    """
    objective.train()
    trainable = [p for p in objective.parameters() if p.requires_grad]
    state = [*objective.parameters(), *objective.buffers()]
    with (
        randomness.micro_batch(0, 0, 0, 0),
        FlopCounterMode(display=False) as counter,
        FusedAttention(),
    ):
        loss, kept = _forward(objective, example, torch.float32)
        forward_flops = counter.get_total_flops()
        # Not loss.backward(), which would leave gradients on the caller's parameters.
        torch.autograd.grad(loss, trainable, allow_unused=True)
    return Cost(
        samples=next(iter(example.values())).shape[0],
        parameters=sum(p.numel() for p in objective.parameters()),
        trainable_parameters=sum(p.numel() for p in trainable),
        parameter_bytes=_bytes_of(state),
        trainable_bytes=_bytes_of(trainable),
        forward_flops=forward_flops,
        training_flops=counter.get_total_flops(),
        model_flops=counter.get_total_flops() - _scores_again(counter),
        activation_bytes=kept,
        batch_bytes=_bytes_of(example.values()),
    )


def activation_bytes(
    objective: Objective, example: Batch, precision: torch.dtype = torch.float32
) -> int:
    """Return the bytes that the forward pass keeps, with recomputation and reduced precision.

    Args:
        objective: On the meta device, or made of fake tensors; put into training mode.
        example: A micro-batch of the same kind of tensors.
        precision: Dtype of the matrix products. Other dtypes than float32 need fake tensors,
            because the meta device has no autocast; their copies of the weights count as well.
    """
    objective.train()
    with randomness.micro_batch(0, 0, 0, 0), FusedAttention():
        return _forward(objective, example, precision)[1]


def _forward(objective: Objective, example: Batch, precision: torch.dtype) -> tuple[Tensor, int]:
    """Return the loss, and the bytes kept for the backward pass."""
    device = next(iter(example.values())).device
    reduced: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if precision != torch.float32:
        reduced = torch.autocast(device.type, precision)
    with LiveStorages() as made, reduced:
        output = objective(example)
        outputs = [t for t in tree_leaves(tuple(output)) if isinstance(t, Tensor)]
    known = [*objective.parameters(), *objective.buffers(), *example.values(), *outputs]
    # After autocast's context, so that its copies of the weights count only if autograd keeps them.
    return output.value, made.total(known)


def memory_estimate(
    cost: Cost,
    optimizer_states_per_parameter: int = 2,
    bytes_per_state: int = 4,
    *,
    shards: int = 1,
    gathered: int = 0,
    has_ema: bool = False,
) -> MemoryEstimate:
    """Estimate the memory of one rank.

    Args:
        cost: The result of `measure` for the rank's micro-batch.
        optimizer_states_per_parameter: Values of optimizer state per trainable parameter: 2 for
            AdamW (both moments), 1 for momentum.
        bytes_per_state: Bytes of each such value.
        shards: Ranks that share one copy of the state. Buffers, which are small, count as shared.
        gathered: Bytes of weights that are gathered on a rank at once; used if `shards` > 1.
        has_ema: Whether there is a moving average of the trainable parameters.
    """
    states = cost.trainable_parameters * optimizer_states_per_parameter

    def share(size: int) -> int:
        return -(-size // shards)

    return MemoryEstimate(
        parameters=share(cost.parameter_bytes),
        gradients=share(cost.trainable_bytes),
        optimizer=share(states * bytes_per_state),
        ema=share(cost.trainable_bytes) if has_ema else 0,
        gathered=gathered if shards > 1 else 0,
        activations=cost.activation_bytes + cost.batch_bytes,
    )


def _scores_again(counter: FlopCounterMode) -> int:
    """Return the FLOPs of the scores that the backward pass of fused attention recomputes.

    The backward pass has five products: the scores, and the gradients of scores, queries, keys
    and values. They are equally large if values are as wide as keys.
    """
    by_operation = counter.get_flop_counts().get("Global", {})
    attention = (torch.ops.aten._scaled_dot_product_efficient_attention_backward,)
    return sum(int(n) for op, n in by_operation.items() if op in attention) // 5


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the distinct storages of some tensors."""
    storages = {_identity(t): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _identity(tensor: Tensor) -> int:
    # On the meta device every data_ptr() is 0; the storage object's own address identifies it.
    return int(tensor.untyped_storage()._cdata)


class LiveStorages(TorchDispatchMode):
    """Records every storage that an operation creates, and sums the bytes of those still alive.

    This includes tensors kept by autograd and by activation checkpointing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                # The weak reference prevents reuse of the address by another storage.
                self._made[storage._cdata] = (reference, storage.nbytes())
        return result

    def total(self, known: Iterable[Tensor]) -> int:
        """Return the bytes of the storages that are alive, except those of `known`."""
        apart = {_identity(tensor) for tensor in known}
        alive = 0
        for identity, (reference, size) in self._made.items():
            if identity not in apart and not reference.expired():  # type: ignore[no-untyped-call]
                alive += size
        return alive


class FusedAttention(TorchFunctionMode):
    """Makes attention on meta tensors use the fused kernel, as on a real device.

    By default meta tensors use the fallback of matrix products, which keeps all scores.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and not kwargs.get("enable_gqa"):
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Replace `scaled_dot_product_attention` by the fused kernel; the mask becomes a bias."""
    bias = None
    if attn_mask is not None:
        scores = (*query.shape[:-1], key.shape[-2])
        bias = attn_mask.to(query.dtype).expand(scores)
    output: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, dropout_p, is_causal, scale=scale
    )[0]
    return output
