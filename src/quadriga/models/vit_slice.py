"""Consecutive blocks of a vision transformer: what a stage holds."""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from quadriga.models.vit import EmbedsPatches, ViT


@final
class ViTSlice(EmbedsPatches):
    """Consecutive blocks of a `ViT`, which it shares with it, under the names they have there."""

    def __init__(self, whole: ViT, blocks: range, is_first: bool, is_last: bool) -> None:
        """Take some blocks of `whole`.

        Args:
            whole: The model.
            blocks: Their global numbers.
            is_first: Whether what embeds the patches belongs to the slice.
            is_last: Whether the final norm does.
        """
        super().__init__()
        self.config, self.is_first, self.is_last = whole.config, is_first, is_last
        if is_first:
            self.patch_projection, self.drop = whole.patch_projection, whole.drop
            self.class_token, self.register_tokens = whole.class_token, whole.register_tokens
            if isinstance(whole.positions, nn.Parameter):
                self.positions = whole.positions
            else:
                self.register_buffer("positions", whole.positions)
        # The names of a ModuleDict are those of the ModuleList that it is a part of.
        self.blocks = nn.ModuleDict({str(number): whole.blocks[number] for number in blocks})
        if is_last:
            self.norm = whole.norm

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens width"] | None,
        images: Float[Tensor, "batch channels side side"],
    ) -> Float[Tensor, "batch tokens width"]:
        """Pass the blocks; what the slice before returned is None for the first."""
        if self.is_first:
            tokens = self.with_prefix(self.embed(images))
        if tokens is None:
            raise ValueError("a slice after the first needs what the one before it returned")
        for block in self.blocks.values():
            tokens = block(tokens)
        if self.is_last:
            tokens = self.norm(tokens)
        return tokens
