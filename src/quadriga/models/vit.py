"""The vision transformer (Dosovitskiy et al., ICLR 2021), and slices of it for stages."""

from __future__ import annotations

import functools
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from quadriga import randomness
from quadriga.contracts import ModelConfig, with_initial_values
from quadriga.errors import UserError, nearest_divisors, nearest_multiples
from quadriga.losses.cross_entropy import types_as_written
from quadriga.models.parts.initialise import Filler, initialise
from quadriga.models.parts.patches import patchify
from quadriga.models.parts.positions import resampling, sincos_table
from quadriga.models.parts.transformer import Block, BlockShape, Dropout, drop_path_rates


@final
class ViTConfig(ModelConfig):
    """A vision transformer of any size."""

    image_px: int = Field(224, ge=1, le=2**14)
    """Side of the square images."""
    patch_px: int = Field(16, ge=1, le=2**14)
    """Side of the square patches."""
    width: int = Field(768, ge=1, le=2**20)
    """Features of a token."""
    depth: int = Field(12, ge=0, le=10_000)
    """Number of blocks."""
    heads: int = Field(12, ge=1, le=10_000)
    """Attention heads."""
    mlp_ratio: float = Field(4.0, gt=0, le=1e3)
    """Hidden features of the MLP per feature of a token."""
    positions: Literal["sincos", "learned"] = "sincos"
    """Fixed sine-cosine table, or a learned one."""
    pool: Literal["class", "mean"] = "class"
    """How an image's feature vector is computed: the class token, or the mean of its patches."""
    class_token: bool = True
    registers: int = Field(0, ge=0, le=10_000)
    """Learned tokens that belong to no patch (Darcet et al., 2024)."""
    layer_scale: float | None = Field(None, ge=-1e3, le=1e3)
    """Initial factor of each residual branch; none: no factors."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that a feature is dropped: of the embedded tokens, of the MLP's hidden layer, and
    of each residual branch."""
    qkv_bias: bool = True
    norm_eps: float = Field(1e-6, gt=0, le=1.0)
    channels: int = Field(3, ge=1, le=10_000)
    """Channels of an image."""

    @model_validator(mode="after")
    def _fields_agree(self) -> ViTConfig:
        if self.image_px % self.patch_px:
            raise ValueError(
                f"image_px must be a multiple of patch_px ({self.patch_px}), but is "
                f"{self.image_px}; {nearest_multiples(self.image_px, self.patch_px)}"
            )
        if self.width % self.heads:
            raise ValueError(
                f"heads must divide width ({self.width}), but is {self.heads}; "
                + nearest_divisors(self.heads, self.width)
            )
        if self.positions == "sincos" and self.width % 4:
            raise ValueError(
                f"width must be a multiple of 4 for positions=sincos, but is {self.width}; "
                + nearest_multiples(self.width, 4)
            )
        if self.pool == "class" and not self.class_token:
            raise ValueError("pool must be mean for class_token=false, but is class")
        return self

    @property
    def grid(self) -> int:
        """Patches along a side of the image."""
        return self.image_px // self.patch_px

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid**2

    @property
    def patch_pixels(self) -> int:
        """Values of a patch: its pixels in all channels."""
        return self.channels * self.patch_px**2

    def block_shape(self) -> BlockShape:
        """Return the shape that all blocks share."""
        return BlockShape(
            width=self.width,
            heads=self.heads,
            mlp_width=int(self.width * self.mlp_ratio),
            qkv_bias=self.qkv_bias,
            norm_eps=self.norm_eps,
            layer_scale=self.layer_scale,
            dropout=self.dropout,
        )

    def build(self) -> ViT:
        """Make the module; see `ModelConfig.build`."""
        return with_initial_values(lambda: ViT(self), initialise)

    @classmethod
    def tiny(cls, image_px: int = 224, patch_px: int = 16) -> ViTConfig:
        """Return ViT-Ti: 12 blocks of width 192 (Touvron et al., 2021, DeiT, table 1)."""
        return cls(image_px=image_px, patch_px=patch_px, width=192, depth=12, heads=3)

    @classmethod
    def small(cls, image_px: int = 224, patch_px: int = 16) -> ViTConfig:
        """Return ViT-S: 12 blocks of width 384 (Touvron et al., 2021, DeiT, table 1)."""
        return cls(image_px=image_px, patch_px=patch_px, width=384, depth=12, heads=6)

    @classmethod
    def base(cls, image_px: int = 224, patch_px: int = 16) -> ViTConfig:
        """Return ViT-B: 12 blocks of width 768 (Dosovitskiy et al., 2021, table 1)."""
        return cls(image_px=image_px, patch_px=patch_px, width=768, depth=12, heads=12)

    @classmethod
    def large(cls, image_px: int = 224, patch_px: int = 16) -> ViTConfig:
        """Return ViT-L: 24 blocks of width 1024 (Dosovitskiy et al., 2021, table 1)."""
        return cls(image_px=image_px, patch_px=patch_px, width=1024, depth=24, heads=16)

    @classmethod
    def huge(cls, image_px: int = 224, patch_px: int = 14) -> ViTConfig:
        """Return ViT-H: 32 blocks of width 1280 (Dosovitskiy et al., 2021, table 1)."""
        return cls(image_px=image_px, patch_px=patch_px, width=1280, depth=32, heads=16)


class EmbedsPatches(nn.Module):
    """The parts of a vision transformer below its blocks: patches, positions, class token."""

    config: ViTConfig
    patch_projection: nn.Linear
    positions: Tensor
    class_token: nn.Parameter | None
    register_tokens: nn.Parameter | None
    drop: Dropout

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches: the class token and the registers."""
        return self.config.class_token + self.config.registers

    def fill(self, filler: Filler) -> None:
        """Draw the tokens and a learned table from N(0, 0.02^2); compute a fixed table."""
        for name in filler.names:
            if name == "positions" and self.config.positions == "sincos":
                grid, width = self.config.grid, self.config.width
                filler.copy(name, sincos_table(grid, grid, width, int(self.config.class_token)))
            else:
                filler.normal(name)

    def patches(
        self, images: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch patches pixels"]:
        """Cut images of the model's size into patches (`patchify`).

        Raises:
            UserError: See `check_size`.
        """
        self.check_size(images)
        return patchify(images, self.config.patch_px)

    def check_size(self, images: Float[Tensor, "batch channels rows columns"]) -> None:
        """Check that images have the model's size, for those who train it at one size.

        Raises:
            UserError: The images have another size or number of channels than the model's.
        """
        expected = (self.config.channels, self.config.image_px, self.config.image_px)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise UserError(
                f"images must have the model's channels, height and width {expected}, but have "
                f"{tuple(images.shape[1:])}; set model.image_px to the size of the views"
            )

    def embed_patches(
        self,
        patches: Float[Tensor, "batch taken pixels"],
        order: Int[Tensor, "batch taken"] | None = None,
    ) -> Float[Tensor, "batch taken width"]:
        """Project patches and add position embeddings; equal to a convolution over the image.

        Args:
            patches: Patches as `patchify` returns them, all of an image or some.
            order: int64 number of each patch in its image; None: all patches in order.
        """
        table = self.positions[int(self.config.class_token) :]
        place = table if order is None else functional.embedding(order, table)
        projected: Tensor = self.patch_projection(patches)
        return projected + place

    def embed(
        self,
        images: Float[Tensor, "batch channels rows columns"],
        masked: Bool[Tensor, "batch patches"] | None = None,
        mask_token: Float[Tensor, " width"] | None = None,
    ) -> Float[Tensor, "batch patches width"]:
        """Return the tokens of all patches of the images, without class token and registers.

        The images may have any size, to whose grid the position embeddings are resampled. Masked
        patches are replaced before their positions are added (Bao et al., "BEiT", 2022,
        arXiv:2106.08254, section 2.3).

        Args:
            images: Height and width are multiples of the patch's side.
            masked: True for patches that `mask_token` replaces; None: none.
            mask_token: Takes the place of a projected patch; a parameter of the method.

        Raises:
            UserError: The patch does not divide the images' height and width, or they have another
                number of channels.
        """
        grid = self.grid_of(images)
        projected: Tensor = self.patch_projection(patchify(images, self.config.patch_px))
        if masked is not None and mask_token is not None:
            token = mask_token.to(projected.dtype)
            projected = torch.where(masked[:, :, None], token, projected)
        return projected + self.places(grid)

    def grid_of(self, images: Float[Tensor, "batch channels rows columns"]) -> tuple[int, int]:
        """Return the rows and columns of patches of images.

        Raises:
            UserError: See `embed`.
        """
        side = self.config.patch_px
        channels, height, width = images.shape[1:]
        if channels != self.config.channels or height % side or width % side:
            raise UserError(
                f"images must have {self.config.channels} channels and a height and width that "
                f"model.patch_px ({side}) divides, but have {(channels, height, width)}; set the "
                "size of the views to a multiple, or model.channels"
            )
        return height // side, width // side

    def places(self, grid: tuple[int, int]) -> Float[Tensor, "patches width"]:
        """Return the position embeddings of the patches of a grid of rows and columns."""
        table = self.positions[int(self.config.class_token) :]
        if grid == (self.config.grid, self.config.grid):
            return table
        key = (grid, table.device)
        if key not in self._resamplings:
            self._resamplings[key] = resampling(self.config.grid, grid).to(table.device)
        with types_as_written(table.device.type):
            return self._resamplings[key] @ table

    @functools.cached_property
    def _resamplings(self) -> dict[tuple[tuple[int, int], torch.device], Tensor]:
        """Matrices by grid and device: making one again would copy from host to device."""
        return {}

    def with_prefix(
        self, tokens: Float[Tensor, "batch taken width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Prepend the class token and the registers to embedded patches, and apply dropout."""
        prefix = []
        if self.class_token is not None:
            prefix.append(self.class_token + self.positions[:1])
        if self.register_tokens is not None:
            prefix.append(self.register_tokens)
        if prefix:
            batch = tokens.shape[0]
            tokens = torch.cat([*(part.expand(batch, -1, -1) for part in prefix), tokens], dim=1)
        dropped: Tensor = self.drop(tokens)
        return dropped

    def pooled(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch width"]:
        """Return one vector per image: the class token, or the mean of the patches (`pool`)."""
        if self.config.pool == "class":
            return tokens[:, 0]
        return tokens[:, self.prefix :].mean(dim=1)


@final
class ViT(EmbedsPatches):
    """Embeds patches, prepends the class token and the registers, and applies the blocks.

    Parameters of block ``i`` are named ``blocks.<i>...`` with the global number ``i``, so that a
    slice of the model keeps the names.
    """

    def __init__(self, config: ViTConfig) -> None:
        """Make the module of `config` with undefined values."""
        super().__init__()
        self.config = config
        width = config.width
        self.patch_projection = nn.Linear(config.patch_pixels, width)
        table = torch.empty(config.class_token + config.patches, width)
        if config.positions == "learned":
            self.positions = nn.Parameter(table)
        else:
            self.register_buffer("positions", table)
        self.class_token = nn.Parameter(torch.empty(1, 1, width)) if config.class_token else None
        self.register_tokens = (
            nn.Parameter(torch.empty(1, config.registers, width)) if config.registers else None
        )
        self.drop = Dropout(config.dropout, randomness.fold("dropout", "embeddings"))
        shape = config.block_shape()
        rates = drop_path_rates(config.drop_path, config.depth)
        self.blocks = nn.ModuleList(Block(shape, layer, rate) for layer, rate in enumerate(rates))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)

    def encode(
        self,
        tokens: Float[Tensor, "batch taken width"],
        keys: Int[Tensor, " batch"] | None = None,
        present: Bool[Tensor, "batch taken"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Prepend the prefix to embedded patches and apply all blocks and the final norm.

        Args:
            tokens: Embedded patches, all of an image or some.
            keys: int64 key of each sample in this pass (`randomness.pass_keys`), for drop path;
                not needed in evaluation.
            present: False for tokens that no other attends to, where images have fewer than
                others; None: all are seen.

        Returns:
            The class token, the registers, then the patches in the order of `tokens`.
        """
        mask = None
        if present is not None:
            mask = functional.pad(present, (self.prefix, 0), value=True)[:, None, None]
        tokens = self.with_prefix(tokens)
        for block in self.blocks:
            tokens = block(tokens, mask, keys=keys)
        output: Tensor = self.norm(tokens)
        return output

    def forward(
        self,
        images: Float[Tensor, "batch channels rows columns"],
        keys: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the encoded tokens of images: the prefix, then all patches."""
        return self.encode(self.embed(images), keys)

    def features(
        self,
        images: Float[Tensor, "batch channels rows columns"],
        keys: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch width"]:
        """Return one vector per image: the class token, or the mean of the patches (`pool`)."""
        return self.pooled(self(images, keys))


@final
class ViTSlice(EmbedsPatches):
    """Consecutive blocks of a `ViT`: the same modules under the same parameter names."""

    def __init__(self, whole: ViT, blocks: range, is_first: bool, is_last: bool) -> None:
        """Hold some blocks of `whole`.

        Args:
            whole: The model.
            blocks: Global numbers of the blocks.
            is_first: Whether the slice has the patch embedding.
            is_last: Whether the slice has the final norm.
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
        # A ModuleDict with the blocks' numbers as keys keeps the names of the ModuleList.
        self.blocks = nn.ModuleDict({str(number): whole.blocks[number] for number in blocks})
        if is_last:
            self.norm = whole.norm

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens width"] | None,
        images: Float[Tensor, "batch channels rows columns"],
        keys: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Apply the blocks; `tokens` is the output of the previous slice, None for the first.

        `keys` are the same for all slices of a pass; see `ViT.encode`.
        """
        if self.is_first:
            tokens = self.with_prefix(self.embed(images))
        if tokens is None:
            raise ValueError("a slice after the first needs what the one before it returned")
        for block in self.blocks.values():
            tokens = block(tokens, keys=keys)
        if self.is_last:
            tokens = self.norm(tokens)
        return tokens
