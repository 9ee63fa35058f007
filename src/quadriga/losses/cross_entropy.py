"""Cross-entropy of a linear map's outputs, without all of them in memory at once.

With a vocabulary of V words the logits of n tokens are an (n, V) matrix, often larger than all
other tensors of a step. Autograd would keep the logits, the log-probabilities and their gradient.
Here only one chunk of rows exists at a time, and is overwritten by its gradient.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Default number of logits in memory at once; 64 MiB in float32."""


def linear_cross_entropy(
    hidden: Float[Tensor, "rows width"],
    weight: Float[Tensor, "words width"],
    bias: Float[Tensor, " words"],
    targets: Int[Tensor, " rows"],
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Return the cross-entropy of ``softmax(hidden @ weight.T + bias)``, and the number of hits.

    Products are computed in autocast's dtype if it is on, everything else in float32. If the logits
    fit into one chunk, their gradient is kept for the backward pass. Otherwise the forward pass
    already computes the gradients of its inputs, chunk by chunk, and keeps those. Second
    derivatives are not supported.

    Args:
        hidden: One row per target; may have no rows.
        weight: One row per word.
        bias: One value per word.
        targets: int64 word ids.
        chunk_elements: Maximum number of logits in memory at once; at least one row.

    Returns:
        float32 sum over the rows in nats, and the int64 number of rows whose target has the
        largest logit (the first of equal ones).
    """
    kind, dtype = hidden.device.type, hidden.dtype
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    rows = max(1, chunk_elements // weight.shape[0])
    with types_as_written(kind):
        if not torch.is_grad_enabled():
            return _without_gradient(hidden, weight, bias, targets, rows, dtype)
        form = _InOnePiece if hidden.shape[0] <= rows else _InChunks
        loss, hits = form.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, targets, rows, dtype
        )
    return loss, hits


class _InOnePiece(torch.autograd.Function):
    """Keeps the gradient of the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        rows: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        loss, hits, likelihoods = _losses(hidden.to(dtype), weight.to(dtype), bias, targets)
        ctx.save_for_backward(hidden, weight, _gradient(likelihoods, targets).to(dtype))
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, gradient = ctx.saved_tensors
        dtype = gradient.dtype
        with types_as_written(hidden.device.type):
            # The scale comes last, because a loss scale would overflow a narrow dtype before.
            of_hidden = (gradient @ weight.to(dtype)).to(hidden.dtype).mul_(scale)
            of_weight = (gradient.t() @ hidden.to(dtype)).to(weight.dtype).mul_(scale)
            of_bias = gradient.sum(dim=0, dtype=torch.float32).mul_(scale)
        return of_hidden, of_weight, of_bias, None, None, None


class _InChunks(torch.autograd.Function):
    """Keeps the gradients of its inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        rows: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        table = weight.to(dtype)
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        of_bias = torch.zeros_like(bias, dtype=torch.float32)
        loss, hits = hidden.new_zeros((), dtype=torch.float32), targets.new_zeros(())
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            chunk = hidden[part].to(dtype)
            chunk_loss, chunk_hits, likelihoods = _losses(chunk, table, bias, targets[part])
            loss += chunk_loss
            hits += chunk_hits
            gradient = _gradient(likelihoods, targets[part])
            of_bias += gradient.sum(dim=0)
            gradient = gradient.to(dtype)
            of_hidden[part] = gradient @ table
            if dtype == of_weight.dtype:
                of_weight.addmm_(gradient.t(), chunk)
            else:
                of_weight += gradient.t() @ chunk
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*(gradient * scale for gradient in ctx.saved_tensors), None, None, None)


def types_as_written(kind: str) -> contextlib.AbstractContextManager[object]:
    """Return a context without autocast; does nothing on devices that do not support autocast."""
    if not torch.amp.is_autocast_available(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def _without_gradient(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, rows: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    table = weight.to(dtype)
    loss, hits = hidden.new_zeros((), dtype=torch.float32), targets.new_zeros(())
    for start in range(0, hidden.shape[0], rows):
        part = slice(start, start + rows)
        chunk_loss, chunk_hits, _ = _losses(hidden[part].to(dtype), table, bias, targets[part])
        loss += chunk_loss
        hits += chunk_hits
    return loss, hits


def _losses(
    chunk: Tensor, table: Tensor, bias: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of the losses, the hits, and the float32 (rows, words) log-likelihoods."""
    logits = torch.addmm(bias.to(table.dtype), chunk, table.t())
    hits = (logits.argmax(dim=1) == targets).sum()
    likelihoods = torch.log_softmax(logits, dim=1, dtype=torch.float32)
    return -likelihoods.gather(1, targets[:, None]).sum(), hits, likelihoods


def _gradient(likelihoods: Tensor, targets: Tensor) -> Tensor:
    """Overwrite log-likelihoods with the gradient of the loss with respect to the logits."""
    gradient = likelihoods.exp_()
    ones = gradient.new_ones((targets.shape[0], 1))
    return gradient.scatter_add_(1, targets[:, None], -ones)
