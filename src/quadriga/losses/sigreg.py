"""Sketched isotropic Gaussian regularisation (Balestriero and LeCun, "LeJEPA", arXiv:2511.08544).

Embeddings are projected onto random directions, the slices, and the distribution of each projection
is compared with N(0, 1) by the test of Epps and Pulley (1983) on its characteristic function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from quadriga import randomness
from quadriga.losses.cross_entropy import types_as_written


def slices(step: int, width: int, count: int, device: torch.device) -> Float[Tensor, "width count"]:
    """Draw directions of unit length, float32, from the number of a step."""
    key = randomness.fold("sigreg slices", step)
    uniform = randomness.element_uniform(key, 0, width * count, device)
    normal = (2.0 * uniform - 1.0).erfinv().view(width, count)
    unit: Tensor = normal / normal.norm(dim=0)
    return unit.float()


def epps_pulley(
    rows: Float[Tensor, "rows views width"],
    directions: Float[Tensor, "width slices"],
    knots: int,
    highest: float,
    reduce: Callable[[Tensor], Tensor],
    total: int,
) -> Float[Tensor, ""]:
    """Return the statistic of Epps and Pulley of each view of a step, averaged over the slices.

    With the N projections x of a view onto a slice and their empirical characteristic function
    ``c(t) = mean of exp(i t x)``, it is ``N integral |c(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt``
    from -`highest` to `highest`: twice the upper half, by the trapezoidal rule. It is computed in
    float32, also under autocast.

    Args:
        rows: This rank's embeddings.
        directions: Of unit length, the same on all ranks.
        knots: Number of frequencies t from 0 on.
        highest: The largest frequency.
        reduce: Sums over the ranks (`Slots.sum`); every rank calls this function.
        total: Rows of the step.
    """
    with types_as_written(rows.device.type):
        frequencies = [highest * knot / (knots - 1) for knot in range(knots)]
        projected = rows.float() @ directions
        mean: Tensor = reduce(_Waves.apply(projected, frequencies)) / total  # type: ignore[no-untyped-call]
        places = mean.new_tensor(frequencies)
        normal = (-places.square() / 2.0).exp()
        error = (mean[0] - normal).square() + mean[1].square()
        widths = torch.full_like(normal, 2.0 * highest / (knots - 1))
        widths[0], widths[-1] = widths[0] / 2.0, widths[-1] / 2.0
        return total * (error @ (widths * normal)).mean()


class _Waves(torch.autograd.Function):
    """Sums over the rows of the cosines and sines of all multiples of values.

    They are computed again in the backward pass: kept, they would need ``2 * knots`` times the
    memory of the values.
    """

    @staticmethod
    def forward(context: Any, values: Tensor, frequencies: list[float]) -> Tensor:
        """Return (2, *values.shape[1:], frequencies)."""
        context.save_for_backward(values)
        context.frequencies = frequencies
        waves = [
            torch.stack([(values * t).cos().sum(dim=0), (values * t).sin().sum(dim=0)])
            for t in frequencies
        ]
        return torch.stack(waves, dim=-1)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the values."""
        (values,) = context.saved_tensors
        total = torch.zeros_like(values)
        for t, (of_cosine, of_sine) in zip(
            context.frequencies, gradients[0].unbind(-1), strict=True
        ):
            angle = values * t
            total += t * (of_sine * angle.cos() - of_cosine * angle.sin())
        return total, None
