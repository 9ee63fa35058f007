"""Which of a vision transformer's tokens are an image's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from quadriga.contracts import Encoder, Objective
from quadriga.distributed.collectives import is_sharded
from quadriga.errors import UserError
from quadriga.models.vit import ViT

Tokens = Literal["pooled", "class", "mean"]


def evaluated_network(objective: nn.Module) -> Any:
    """Return the network that computes an objective's features; a network returns itself."""
    # A method with a teacher names the network that its features are of.
    return getattr(objective, "features_of", getattr(objective, "encoder", objective))


@final
@dataclass(frozen=True)
class Selection:
    """What is taken as the features of an image."""

    tokens: Tokens = "pooled"
    """The method's own features, the class token, or the mean of the patches."""
    layers: int = 1
    """Number of the last blocks whose tokens, each after the final norm, are concatenated."""

    def of(self, objective: Objective, where: str) -> Encoder:
        """Return an encoder with these features.

        Args:
            objective: A method with an image encoder.
            where: Config path of the selection, for error messages.

        Raises:
            UserError: The encoder is no vision transformer, has no class token or fewer blocks, or
                its parameters are sharded.
            TypeError: The objective has no features at all.
        """
        if self == Selection():
            if not isinstance(objective, Encoder):
                raise TypeError(f"{type(objective).__name__} has no features(images)")
            return objective
        network = evaluated_network(objective)
        if not isinstance(network, ViT):
            raise UserError(
                f"{where}.tokens must be pooled, and layers 1, for an encoder that is no vision "
                f"transformer, but are {self.tokens} and {self.layers}; leave them out"
            )
        if self.tokens == "class" and not network.config.class_token:
            raise UserError(
                f"{where}.tokens must be mean or pooled for model.class_token=false, but is class; "
                "set it"
            )
        if self.layers > network.config.depth:
            raise UserError(
                f"{where}.layers must be at most model.depth ({network.config.depth}), but is "
                f"{self.layers}; lower it"
            )
        if is_sharded(network.parameters()):
            raise UserError(
                f"{where}.tokens must be pooled, and layers 1, for sharded parameters, but are "
                f"{self.tokens} and {self.layers}; evaluate with train.parallel=ddp"
            )
        return SelectedTokens(network, self)


@final
class SelectedTokens:
    """A vision transformer as an encoder with chosen features."""

    def __init__(self, network: ViT, selection: Selection) -> None:
        """Take the tokens of `selection` from `network`."""
        self.network, self.selection = network, selection

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return the vectors of the last layers side by side, the earliest first."""
        network = self.network
        tokens = network.with_prefix(network.embed(images))
        first, vectors = len(network.blocks) - self.selection.layers, []
        for number, block in enumerate(network.blocks):
            tokens = block(tokens)
            if number >= first:
                vectors.append(self._vector(network.norm(tokens)))
        return torch.cat(vectors, dim=1)

    def _vector(self, tokens: Tensor) -> Tensor:
        if self.selection.tokens == "pooled":
            return self.network.pooled(tokens)
        if self.selection.tokens == "class":
            return tokens[:, 0]
        return tokens[:, self.network.prefix :].mean(dim=1)
