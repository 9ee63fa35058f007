"""Heads of self-supervised methods: projections and prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from quadriga.models.parts.batch_norm import BatchNorm, Reduce
from quadriga.models.parts.initialise import Filler


@final
class ProjectionHead(nn.Module):
    """Linear maps with batch normalisation over the rows of a whole step and ReLU between them.

    The maps before a normalisation have no bias, because the normalisation would subtract it.
    """

    def __init__(
        self,
        widths: Sequence[int],
        last_norm: bool = False,
        last_bias: bool = False,
        last_affine: bool = False,
    ) -> None:
        """Make the maps from each width to the next.

        Args:
            widths: Features of the input, of the hidden layers, and of the output.
            last_norm: Whether the output is normalised as well.
            last_bias: Whether the last map has a bias.
            last_affine: Whether the normalised output has learned factors and offsets.
        """
        super().__init__()
        pairs = list(pairwise(widths))
        last = len(pairs) - 1
        self.maps = nn.ModuleList(
            nn.Linear(inputs, outputs, bias=last_bias and number == last)
            for number, (inputs, outputs) in enumerate(pairs)
        )
        self.norms = nn.ModuleList(BatchNorm(outputs) for _, outputs in pairs[:-1])
        self.last_norm = BatchNorm(widths[-1], affine=last_affine) if last_norm else None

    def forward(
        self, rows: Float[Tensor, "rows features"], reduce: Reduce
    ) -> Float[Tensor, "rows outputs"]:
        """Project one rank's rows of a step.

        Args:
            rows: This rank's rows; may be empty.
            reduce: Sums over the ranks (`Slots.sum`); every rank calls this method.
        """
        for linear, norm in zip(self.maps[:-1], self.norms, strict=True):
            rows = functional.relu(norm(linear(rows), reduce))
        outputs: Tensor = self.maps[-1](rows)
        return outputs if self.last_norm is None else self.last_norm(outputs, reduce)


@final
class DINOHead(nn.Module):
    """The projection of DINO (Caron et al., 2021, arXiv:2104.14294, appendix C): three linear
    maps with GELU between them, to a bottleneck of unit length.
    """

    def __init__(self, width: int, hidden_width: int, bottleneck: int) -> None:
        """Make the maps ``width -> hidden_width -> hidden_width -> bottleneck``."""
        super().__init__()
        widths = (width, hidden_width, hidden_width, bottleneck)
        self.maps = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, rows: Float[Tensor, "rows features"]) -> Float[Tensor, "rows bottleneck"]:
        """Project each row; the result is float32 of unit length."""
        for linear in self.maps[:-1]:
            rows = functional.gelu(linear(rows))
        return functional.normalize(self.maps[-1](rows).float(), dim=1)


@final
class Prototypes(nn.Module):
    """Prototypes of unit length, to which rows of unit length are compared by inner products.

    This is weight normalisation with fixed factors (Salimans and Kingma, 2016, arXiv:1602.07868).
    """

    def __init__(self, width: int, prototypes: int) -> None:
        """Make the prototypes of `width` features, with undefined values."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(prototypes, width))

    def fill(self, filler: Filler) -> None:
        """Draw each element from N(0, 1 / width), so that the length is about 1."""
        filler.normal("weight", self.weight.shape[1] ** -0.5)

    def forward(self) -> Float[Tensor, "prototypes width"]:
        """Return the normalised prototypes, float32; a row's scores are its products with them."""
        return functional.normalize(self.weight.float(), dim=1)
