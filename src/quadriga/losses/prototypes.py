"""Losses on the scores of rows with prototypes, without all scores in memory at once.

With K prototypes the scores of n rows are an (n, K) matrix; for K = 65,536 it is larger than all
other tensors of a step. Here only one chunk of rows exists at a time, and the backward pass
recomputes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from quadriga.losses.cross_entropy import CHUNK_ELEMENTS, types_as_written


def prototype_cross_entropy(
    rows: Float[Tensor, "images views width"],
    prototypes: Float[Tensor, "prototypes width"],
    temperature: float,
    target_rows: Float[Tensor, "images targets width"],
    target_prototypes: Float[Tensor, "prototypes width"],
    target_temperature: float,
    target_offset: Float[Tensor, "*targets prototypes"],
    pairs: Sequence[Sequence[float]] = ((1.0,),),
    weights: Float[Tensor, " images"] | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the cross-entropy between distributions over prototypes, summed over the images.

    For each image the sum over its views v and targets t of ``-pairs[v][t] sum_k q_tk log p_vk``
    with ``p_v = softmax(row_v @ prototypes.T / temperature)`` and ``q_t = softmax(target_row_t @
    target_prototypes.T / target_temperature + target_offset_t)``. q gets no gradient. Its products
    are in float32 even under autocast: the low temperature would amplify the rounding of a narrow
    dtype. V views and T targets cost V + T softmaxes, whatever the pairs.

    Args:
        rows: The views of each image; there may be no images.
        prototypes: Prototypes of p.
        temperature: Temperature of p.
        target_rows: The rows of q.
        target_prototypes: Prototypes of q.
        target_temperature: Temperature of q.
        target_offset: Added to the logits of all q, or of each: ``-centre / target_temperature``
            in DINO, the result of `sinkhorn_offset` in SwAV.
        pairs: For each view the weight of each target.
        weights: Weight of each image in the sum; None: 1.
        chunk_elements: Maximum number of scores of p, and of q, in memory; at least one image's.

    Returns:
        float32 sums, in nats: of the loss, and of the entropy of each image's q_t, without a graph.
    """
    most = max(rows.shape[1], target_rows.shape[1])
    size = max(1, chunk_elements // (prototypes.shape[0] * most))
    if weights is None:
        weights = rows.new_ones(rows.shape[0], dtype=torch.float32)
    fixed = (target_prototypes.detach(), target_temperature, target_offset.detach(), pairs)
    loss, entropy = rows.new_zeros((), dtype=torch.float32), rows.new_zeros((), dtype=torch.float32)
    split = (torch.split(part, size) for part in (rows, target_rows.detach(), weights))
    for own, target, weight in zip(*split, strict=True):
        chunk_loss, chunk_entropy = checkpoint(
            _chunk,
            own,
            prototypes,
            temperature,
            target,
            *fixed,
            weight,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        loss, entropy = loss + chunk_loss, entropy + chunk_entropy.detach()
    return loss, entropy


def crossed(views: int, targets: int = 2) -> list[list[float]]:
    """Return the pairs of each view with the targets that are not the view itself.

    The targets are those of the first `targets` views. The weights sum to 1, so that the sum over
    the pairs is their mean.
    """
    weight = 1.0 / (targets * (views - 1))
    return [
        [0.0 if view == target else weight for target in range(targets)] for view in range(views)
    ]


def _chunk(
    rows: Tensor,
    prototypes: Tensor,
    temperature: float,
    target_rows: Tensor,
    target_prototypes: Tensor,
    target_temperature: float,
    target_offset: Tensor,
    pairs: Sequence[Sequence[float]],
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad(), types_as_written(rows.device.type):
        scores = target_rows.float() @ target_prototypes.float().t()
        targets = functional.log_softmax(scores / target_temperature + target_offset, dim=-1)
        probabilities = targets.exp()
        entropy = -((probabilities * targets).sum(dim=(1, 2)) * weights).sum()
        mixed = [_mixed(probabilities, row) * weights[:, None] for row in pairs]
    logits = (rows @ prototypes.t()).float() / temperature
    logs = functional.log_softmax(logits, dim=-1)
    parts = [-(own * logs[:, view]).sum() for view, own in enumerate(mixed)]
    return sum(parts[1:], parts[0]), entropy


def _mixed(probabilities: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted sum over the targets: (images, prototypes)."""
    # Python numbers, because a matrix would be copied from host to device in each chunk.
    parts = [probabilities[:, target] * w for target, w in enumerate(weights) if w]
    return sum(parts[1:], parts[0])


@torch.no_grad()
def summed_scores(
    rows: Float[Tensor, "rows width"], prototypes: Float[Tensor, "prototypes width"]
) -> Float[Tensor, " prototypes"]:
    """Return the sum over the rows of their scores, computed as the scores of the rows' sum."""
    with types_as_written(rows.device.type):
        return prototypes @ rows.sum(dim=0)


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
    """Return one offset per prototype that balances the assignments of rows to prototypes.

    The Sinkhorn-Knopp iteration (Cuturi, 2013, arXiv:1306.0895) of SwAV (Caron et al., 2020,
    arXiv:2006.09882, eq. 3 to 5) scales the matrix ``exp(scores / epsilon)`` of rows x prototypes
    so that each prototype has the same mass, then each row. The result is the matrix
    ``softmax(scores / epsilon + offset)`` over each row, so K offsets determine it.

    Args:
        rows: The rows of this rank; may have no rows.
        prototypes: The prototypes.
        epsilon: Regularisation; the lower, the sharper the assignments. Scores / epsilon must be
            below 700.
        iterations: Number of scalings of prototypes and rows.
        reduce: Sums float64 values over the ranks; every rank calls this function.
        weights: 1 for rows that count, 0 for rows that do not; None: all count.
        chunk_elements: Maximum number of scores in memory at once; at least one row.

    Returns:
        float32; defined up to a constant, to which a softmax is invariant. 0 if no row counts.
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
                if iteration > 0:  # in the first iteration the rows are not scaled yet
                    scores = scores - torch.logsumexp(scores + offset, dim=1, keepdim=True)
                masses += torch.logsumexp(scores + log_weights[:, None], dim=0).double().exp()
            offset = -reduce(masses).log().float()
    return offset.masked_fill(offset == torch.inf, 0.0)
