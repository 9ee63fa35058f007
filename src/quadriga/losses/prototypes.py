"""Losses on the scores of rows with prototypes, without holding all scores at once.

With K prototypes the scores of n rows are an (n, K) matrix: 65,536 of them are more than all else
of a step. Here one chunk of rows exists at a time, and is computed once more for its gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from quadriga.losses.cross_entropy import CHUNK_ELEMENTS, types_as_written


def prototype_cross_entropy(
    rows: Float[Tensor, "rows width"],
    prototypes: Float[Tensor, "prototypes width"],
    temperature: float,
    target_rows: Float[Tensor, "rows width"],
    target_prototypes: Float[Tensor, "prototypes width"],
    target_temperature: float,
    target_offset: Float[Tensor, " prototypes"],
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the cross-entropy between two distributions over prototypes, summed over the rows.

    ``-sum_k q_k log p_k`` with ``p = softmax(rows @ prototypes.T / temperature)`` and
    ``q = softmax(target_rows @ target_prototypes.T / target_temperature + target_offset)``. No
    gradient reaches q. Its products are computed in float32, whatever autocast says: the rounding
    of a narrow type would be divided by its low temperature.

    Args:
        rows: One per target; there may be none.
        prototypes: What rows are compared with.
        temperature: Of p.
        target_rows: The rows of q.
        target_prototypes: What they are compared with.
        target_temperature: Of q.
        target_offset: Added to the logits of q: ``-centre / target_temperature`` in DINO, the
            scales of `sinkhorn_offset` in SwAV.
        chunk_elements: Scores that may exist at once; those of one row at least always do.

    Returns:
        float32 sums over the rows, in nats: of the loss, and of q's entropy, without a graph.
    """
    size = max(1, chunk_elements // prototypes.shape[0])
    fixed = (target_prototypes.detach(), target_temperature, target_offset.detach())
    loss, entropy = rows.new_zeros((), dtype=torch.float32), rows.new_zeros((), dtype=torch.float32)
    for own, target in zip(
        torch.split(rows, size), torch.split(target_rows.detach(), size), strict=True
    ):
        chunk_loss, chunk_entropy = checkpoint(
            _chunk,
            own,
            prototypes,
            temperature,
            target,
            *fixed,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        loss, entropy = loss + chunk_loss, entropy + chunk_entropy.detach()
    return loss, entropy


def _chunk(
    rows: Tensor,
    prototypes: Tensor,
    temperature: float,
    target_rows: Tensor,
    target_prototypes: Tensor,
    target_temperature: float,
    target_offset: Tensor,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad(), types_as_written(rows.device.type):
        scores = target_rows.float() @ target_prototypes.float().t()
        targets = functional.log_softmax(scores / target_temperature + target_offset, dim=1)
        probabilities = targets.exp()
        entropy = -(probabilities * targets).sum()
    logits = (rows @ prototypes.t()).float() / temperature
    return -(probabilities * functional.log_softmax(logits, dim=1)).sum(), entropy


@torch.no_grad()
def sinkhorn_offset(
    rows: Float[Tensor, "rows width"],
    prototypes: Float[Tensor, "prototypes width"],
    epsilon: float,
    iterations: int,
    reduce: Callable[[Tensor], Tensor],
    weights: Float[Tensor, " rows"] | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Float[Tensor, " prototypes"]:
    """Return what balances the assignments of rows to prototypes: a number for each prototype.

    The Sinkhorn-Knopp iteration (Cuturi, 2013, arXiv:1306.0895) of SwAV (Caron et al., 2020,
    arXiv:2006.09882, eq. 3 to 5) scales the matrix ``exp(scores / epsilon)`` of rows x prototypes:
    each prototype gets the same mass, then each row. What it ends with is ``softmax(scores /
    epsilon + offset)`` of each row: K numbers stand for the whole matrix.

    Args:
        rows: Those of this rank; there may be none.
        prototypes: What they are compared with.
        epsilon: Regularisation; the lower, the sharper the assignments. Scores over epsilon are
            to be below 700.
        iterations: Of prototypes, then rows.
        reduce: Sums float64 values over the ranks; each of them calls this.
        weights: 0 for rows that are to be left out, 1 for the others; None: all count.
        chunk_elements: Scores that may exist at once; those of one row at least always do.

    Returns:
        float32; up to a constant, which a softmax does not see.
    """
    count = prototypes.shape[0]
    size = max(1, chunk_elements // count)
    offset = prototypes.new_zeros(count, dtype=torch.float32)
    ones = rows.new_ones(rows.shape[0], dtype=torch.float32)
    chunks = list(
        zip(
            torch.split(rows, size),
            torch.split((ones if weights is None else weights).log(), size),
            strict=True,
        )
    )
    with types_as_written(rows.device.type):
        for iteration in range(iterations):
            masses = offset.new_zeros(count, dtype=torch.float64)
            for part, log_weights in chunks:
                scores = part.float() @ prototypes.float().t() / epsilon
                if iteration > 0:  # before the first, no row has been scaled
                    scores = scores - torch.logsumexp(scores + offset, dim=1, keepdim=True)
                masses += torch.logsumexp(scores + log_weights[:, None], dim=0).double().exp()
            offset = -reduce(masses).log().float()
    return offset
