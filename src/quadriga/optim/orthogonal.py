"""The nearest orthogonal matrix, roughly and fast, by a Newton-Schulz iteration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from quadriga.optim.parts.foreach import gathered

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd quintic of Jordan et al. 2024, steepest at 0: it takes singular values that are not
tiny to between 0.7 and 1.2 within five steps."""


def orthogonalise(
    matrices: Float[Tensor, "batch rows columns"], steps: int, dtype: torch.dtype
) -> Float[Tensor, "batch rows columns"]:
    """Move every singular value of each matrix towards 1.

    Jordan et al. 2024: ``X = X / |X|``, then `steps` times
    ``X = a X + (b X X^T + c (X X^T)^2) X``.

    Args:
        matrices: Float matrices of one shape.
        steps: Number of iterations.
        dtype: What is computed in, and the dtype of the result.

    Returns:
        U V^T of each matrix U S V^T, up to singular values near 1.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    found = matrices.to(dtype)
    # The smaller of the two Gram matrices.
    found = found.mT if tall else found
    norm = torch.linalg.vector_norm(found, dim=(-2, -1), keepdim=True)
    found = found / norm.clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = found @ found.mT
        inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        found = torch.baddbmm(found, inner, found, beta=a)
    return found.mT if tall else found


def orthogonalise_all(
    matrices: Sequence[Float[Tensor, "..."]], steps: int, dtype: torch.dtype
) -> list[Float[Tensor, "..."]]:
    """Apply `orthogonalise` to matrices of any shapes, those of one shape in one batch.

    Args:
        matrices: Float matrices, each (rows, columns) of its own; sharded ones are gathered.
        steps: Number of iterations.
        dtype: What is computed in.

    Returns:
        One matrix each, in the dtype that `matrices` has.
    """
    places: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
    for place, matrix in enumerate(matrices):
        places.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(place)
    found: dict[int, Tensor] = {}
    for (_, original, _), members in places.items():
        batch = torch.stack([gathered(matrices[place]) for place in members])
        results = orthogonalise(batch, steps, dtype).to(original)
        found.update(zip(members, results.unbind(), strict=True))
    return [found[place] for place in range(len(matrices))]
