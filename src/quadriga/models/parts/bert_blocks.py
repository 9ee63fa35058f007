"""BERT's post-norm blocks, computed on the real tokens of a micro-batch, without padding.

Linear maps, norms and activations process a flat (tokens, width) matrix without padding. Only
attention scatters the tokens into padded sequences and gathers its outputs again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from quadriga import randomness
from quadriga.models.parts.attention import attention, formula
from quadriga.models.parts.transformer import MLP, Dropout


@dataclass(frozen=True, kw_only=True)
class BertShape:
    """The dimensions and rates that all blocks share."""

    width: int
    """Features of a token."""
    heads: int
    """Attention heads; they divide `width`."""
    mlp_width: int
    """Features of the MLP's hidden layer."""
    norm_eps: float
    dropout: float
    """Probability that a feature of a residual branch is dropped."""
    attention_dropout: float
    """Probability that a query's weight on a key is dropped."""


class Places(NamedTuple):
    """Positions of the tokens of a flat matrix in the (batch, length) grid of a micro-batch."""

    batch: int
    length: int
    tokens: Int[Tensor, " tokens"] | None
    """int64 position of each token in the flattened grid; None if the tokens fill the grid."""
    keys: Bool[Tensor, "batch 1 1 length"]
    """Whether a position holds a real token, which queries may attend to."""


class _Spread(torch.autograd.Function):
    """Scatters rows into a larger matrix of zeros."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        return rows.new_zeros((size, rows.shape[1])).index_copy_(0, places, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradient.index_select(0, places), None, None


class _Collect(torch.autograd.Function):
    """Gathers rows, each at most once, so that its gradient needs no sums, unlike indexing's."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = matrix.shape[0]
        return matrix.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        whole = gradient.new_zeros((ctx.size, gradient.shape[1]))
        return whole.index_copy_(0, places, gradient), None


def collect_rows(
    matrix: Float[Tensor, "all width"], places: Int[Tensor, " taken"]
) -> Float[Tensor, "taken width"]:
    """Return some rows of a matrix.

    Args:
        matrix: The rows.
        places: int64 numbers of rows, without duplicates.
    """
    taken: Tensor = _Collect.apply(matrix, places)  # type: ignore[no-untyped-call]
    return taken


@contextlib.contextmanager
def _keyed_default_generator(salt: int, device: torch.device) -> Iterator[None]:
    """Seed torch's default generator of a GPU for kernels that accept no other, then restore it.

    The generator's state is on the host, so nothing synchronises with the device.
    """
    number = torch.cuda.current_device() if device.index is None else device.index
    default = torch.cuda.default_generators[number]
    state = default.get_state()
    default.manual_seed(randomness.layer_generator(salt, torch.device("cpu")).initial_seed())
    try:
        yield
    finally:
        default.set_state(state)


@final
class BertAttention(nn.Module):
    """Multi-head self-attention of flat tokens within their sequences."""

    def __init__(self, shape: BertShape, layer: int) -> None:
        """Make the projections; `layer` makes the random draws of layers different."""
        super().__init__()
        self.heads = shape.heads
        self.rate = shape.attention_dropout
        self.salt = randomness.fold("dropout", layer, "attention weights")
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.output = nn.Linear(shape.width, shape.width)
        self.drop = Dropout(self.rate, self.salt)

    def forward(
        self, tokens: Float[Tensor, "tokens width"], places: Places
    ) -> Float[Tensor, "tokens width"]:
        """Let each token attend to the real tokens of its sequence."""
        size, width = places.batch * places.length, tokens.shape[1]
        fused: Tensor = self.qkv(tokens)
        if places.tokens is not None:
            fused = _Spread.apply(fused, places.tokens, size)  # type: ignore[no-untyped-call]
        grid = fused.view(places.batch, places.length, 3, self.heads, width // self.heads)
        query, key, value = grid.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self._mix(query, key, value, places.keys).transpose(1, 2).reshape(size, width)
        if places.tokens is not None:
            mixed = collect_rows(mixed, places.tokens)
        output: Tensor = self.output(mixed)
        return output

    def _mix(
        self,
        query: Float[Tensor, "batch heads length size"],
        key: Float[Tensor, "batch heads length size"],
        value: Float[Tensor, "batch heads length size"],
        keys: Bool[Tensor, "batch 1 1 length"],
    ) -> Float[Tensor, "batch heads length size"]:
        """Return each query's weighted mean of the values.

        torch's fused kernels accept no generator for dropout. On a GPU they use the default
        generator, which gets the layer's key for the duration of the call; their backward pass
        repeats the draws from state that they save. Other devices have no fused kernel with
        dropout, so the formula is computed explicitly.
        """
        if self.rate == 0.0 or not self.training:
            return attention(query, key, value, keys)
        if query.device.type == "cuda":
            with _keyed_default_generator(self.salt, query.device):
                return functional.scaled_dot_product_attention(
                    query, key, value, attn_mask=keys, dropout_p=self.rate
                )
        return formula(query, key, value, keys, self.drop)


@final
class BertBlock(nn.Module):
    """A post-norm block: ``x = norm(x + attention(x)); x = norm(x + mlp(x))``."""

    has_many_shapes = True
    """Whether shapes differ between micro-batches, so that one program is compiled for all."""

    def __init__(self, shape: BertShape, layer: int) -> None:
        """Make one block.

        Args:
            shape: The shape that all blocks share.
            layer: Global number of the block in the whole model.
        """
        super().__init__()
        self.attention = BertAttention(shape, layer)
        self.attention_drop = Dropout(shape.dropout, randomness.fold("dropout", layer, "attention"))
        self.attention_norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.mlp = MLP(shape.width, shape.mlp_width)
        self.mlp_drop = Dropout(shape.dropout, randomness.fold("dropout", layer, "mlp"))
        self.mlp_norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)

    def forward(
        self, tokens: Float[Tensor, "tokens width"], places: Places
    ) -> Float[Tensor, "tokens width"]:
        """Apply the block to the real tokens of a micro-batch."""
        branch = self.attention_drop(self.attention(tokens, places))
        tokens = self.attention_norm(tokens + branch)
        branch = self.mlp_drop(self.mlp(tokens))
        output: Tensor = self.mlp_norm(tokens + branch)
        return output
