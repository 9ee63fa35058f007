"""BERT's pooler: one vector per text, from its first token (Devlin et al., 2019)."""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor, nn


@final
class Pooler(nn.Module):
    """A linear map and tanh."""

    def __init__(self, width: int) -> None:
        """Make the map of `width` features to as many."""
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, first: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Map the vectors of the first tokens."""
        output: Tensor = self.dense(first).tanh()
        return output
