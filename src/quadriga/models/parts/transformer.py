"""Parts of a transformer: attention, MLP, layer scale, drop path, dropout, the pre-norm block.

`zero_branches` makes blocks start as the identity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from quadriga import randomness
from quadriga.models.parts.attention import attention
from quadriga.models.parts.initialise import Filler


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """The dimensions and options that all blocks of a transformer share."""

    width: int
    """Features of a token."""
    heads: int
    """Attention heads; they divide `width`."""
    mlp_width: int
    """Features of the MLP's hidden layer."""
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    layer_scale: float | None = None
    """Initial factor of each residual branch; None: no factors."""
    dropout: float = 0.0
    """Probability that a feature of a residual branch is dropped."""


@final
class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017, section 3.2) with one fused projection."""

    def __init__(self, width: int, heads: int, qkv_bias: bool = True) -> None:
        """Make the projections of `width` features, split into `heads`."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.output = nn.Linear(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens width"],
        mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Let each token attend to all tokens of its sequence.

        Args:
            tokens: The sequences.
            mask: Broadcastable to (batch, heads, tokens, tokens). Boolean: True where a query may
                attend to a key; float: added to the scores.
        """
        batch, length, width = tokens.shape
        fused = self.qkv(tokens).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = fused.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attention(query, key, value, mask)
        output: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        return output


@final
class MLP(nn.Module):
    """Two linear maps with the exact (erf) GELU of Hendrycks and Gimpel (2016) between them."""

    def __init__(self, width: int, hidden_width: int, drop: nn.Module | None = None) -> None:
        """Make the maps ``width -> hidden_width -> width``; `drop` acts on the hidden features."""
        super().__init__()
        self.hidden = nn.Linear(width, hidden_width)
        self.drop = nn.Identity() if drop is None else drop
        self.output = nn.Linear(hidden_width, width)

    def forward(self, tokens: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
        """Apply the maps to each token."""
        output: Tensor = self.output(self.drop(functional.gelu(self.hidden(tokens))))
        return output


@final
class LayerScale(nn.Module):
    """A learned factor per feature of a residual branch (Touvron et al., 2021, CaiT, eq. 4)."""

    def __init__(self, width: int, initial: float) -> None:
        """Make `width` factors that start at `initial`."""
        super().__init__()
        self.initial = initial
        self.factor = nn.Parameter(torch.empty(width))

    def fill(self, filler: Filler) -> None:
        """Set every factor to its initial value."""
        filler.constant("factor", self.initial)

    def forward(self, branch: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
        """Scale the features of `branch`."""
        return branch * self.factor


@final
class DropPath(nn.Module):
    """Stochastic depth per sample (Huang et al., 2016), drawn from the sample's own key."""

    def __init__(self, rate: float, salt: int) -> None:
        """Drop a sample's branch with probability `rate`; each branch has a different `salt`."""
        super().__init__()
        self.drops = rate > 0.0
        # Tensors, because as constants they would make every layer compile its own program.
        self.rate = torch.tensor(rate, dtype=torch.float32, device="cpu")
        self.salt = randomness.salt_tensor(salt)

    def forward(
        self, branch: Float[Tensor, " batch *any"], keys: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, " batch *any"]:
        """Zero the branch of some samples and scale the others to keep the expectation.

        Args:
            branch: A residual branch, with the samples in dimension 0.
            keys: int64 key of each sample in this pass (`randomness.pass_keys`).

        Raises:
            RuntimeError: There are no keys, but the module trains.
        """
        if not (self.drops and self.training):
            return branch
        if keys is None:
            raise RuntimeError(
                "drop path while training needs the samples' keys, but has none; pass "
                'keys=randomness.pass_keys(batch["key"], NAME)'
            )
        opaque = branch.device.type == "cpu" and torch.compiler.is_compiling()
        draw = _factors_as_one_operation if opaque else _factors
        factors = draw(keys, self.salt, self.rate)
        return branch * factors.to(branch.dtype).view(-1, *(1,) * (branch.dim() - 1))


def _factors(keys: Tensor, salt: Tensor, rate: Tensor) -> Float[Tensor, " batch"]:
    """Return the factor of each sample's branch: 0, or 1 / (1 - rate)."""
    uniform = randomness.uniform_rows(keys, salt, 1)[:, 0]
    return (uniform >= rate).to(torch.float32) / (1.0 - rate)


# Opaque to the compiler on the CPU: the kernel that torch 2.13 generates writes a full SIMD vector
# at the end of batches that are not a multiple of one (100 samples), and overwrites other memory.
_factors_as_one_operation = torch.library.custom_op(
    "quadriga::drop_path_factors",
    _factors,
    mutates_args=(),
    schema="(Tensor keys, Tensor salt, Tensor rate) -> Tensor",
)


@_factors_as_one_operation.register_fake
def _(keys: Tensor, salt: Tensor, rate: Tensor) -> Tensor:
    return torch.empty_like(keys, dtype=torch.float32)


@final
class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014), drawn in the scope of the micro-batch."""

    def __init__(self, rate: float, salt: int) -> None:
        """Drop each feature with probability `rate`; each layer has a different `salt`."""
        super().__init__()
        self.rate = rate
        self.salt = salt

    def forward(self, features: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Zero some features and scale the others to keep the expectation."""
        if self.rate == 0.0 or not self.training:
            return features
        source = randomness.layer_generator(self.salt, features.device)
        keep = torch.empty_like(features).bernoulli_(1.0 - self.rate, generator=source)
        return features * keep.div_(1.0 - self.rate)


@final
class Block(nn.Module):
    """A pre-norm block: ``x += attention(norm(x)); x += mlp(norm(x))`` (Xiong et al., 2020)."""

    def __init__(self, shape: BlockShape, layer: int, drop_path: float = 0.0) -> None:
        """Make one block.

        Args:
            shape: The shape that all blocks share.
            layer: Global number of the block in the whole model.
            drop_path: Probability that a sample skips a branch of this block.
        """
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.attention = Attention(shape.width, shape.heads, shape.qkv_bias)
        self.attention_residual = Residual(shape, layer, "attention", drop_path)
        self.mlp_norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        drop = None
        if shape.dropout > 0.0:
            drop = Dropout(shape.dropout, randomness.fold("dropout", layer, "hidden"))
        self.mlp = MLP(shape.width, shape.mlp_width, drop)
        self.mlp_residual = Residual(shape, layer, "mlp", drop_path)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens width"],
        mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
        keys: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Apply the block; `mask` as for `Attention`, `keys` as for `DropPath`.

        Keys are an argument and not a context, so that recomputation gets the same keys and a
        compiled block treats them as an input.
        """
        branch = self.attention(self.attention_norm(tokens), mask)
        tokens = tokens + self.attention_residual(branch, keys)
        branch = self.mlp(self.mlp_norm(tokens))
        output: Tensor = tokens + self.mlp_residual(branch, keys)
        return output


@final
class Residual(nn.Module):
    """The operations on a residual branch before it is added: dropout, layer scale, drop path."""

    def __init__(self, shape: BlockShape, layer: int, branch: str, drop_path: float) -> None:
        """Make the operations in use; `layer` and `branch` make their draws different."""
        super().__init__()
        self.dropout: nn.Module = nn.Identity()
        self.scale: nn.Module = nn.Identity()
        self.drop_path = None
        if shape.dropout > 0.0:
            self.dropout = Dropout(shape.dropout, randomness.fold("dropout", layer, branch))
        if shape.layer_scale is not None:
            self.scale = LayerScale(shape.width, shape.layer_scale)
        if drop_path > 0.0:
            self.drop_path = DropPath(drop_path, randomness.fold("drop_path", layer, branch))

    def forward(
        self, branch: Float[Tensor, " batch *any"], keys: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, " batch *any"]:
        """Return the summand for the tokens; `keys` as for `DropPath`."""
        branch = self.scale(self.dropout(branch))
        return branch if self.drop_path is None else self.drop_path(branch, keys)


def drop_path_rates(highest: float, depth: int) -> list[float]:
    """Return the drop path rate of each block, linear from 0 to `highest` at the last block."""
    return [highest * layer / max(1, depth - 1) for layer in range(depth)]


@torch.no_grad()
def zero_branches(blocks: Iterable[nn.Module]) -> None:
    """Set the output projections of pre-norm blocks to zero, so that each returns its input.

    The first step changes only these projections; the rest of a branch gets gradients from the
    second step on (Chen et al., "Net2Net", 2016; Goyal et al., 2017, section 5.1, for the last
    scale of a branch).

    Args:
        blocks: Blocks with linear maps ``attention.output`` and ``mlp.output``.

    Raises:
        TypeError: A block has no such maps.
    """
    for block in blocks:
        for branch in ("attention", "mlp"):
            output = getattr(getattr(block, branch, None), "output", None)
            if not isinstance(output, nn.Linear):
                raise TypeError(f"{type(block).__name__} has no linear {branch}.output")
            output.weight.zero_()
            if output.bias is not None:
                output.bias.zero_()
