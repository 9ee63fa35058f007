"""Masked autoencoders (He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022).

Most patches of an image are masked. The encoder gets only the visible ones; a light decoder gets
their encodings and a mask token for each masked patch and predicts the masked pixels.
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from quadriga import randomness
from quadriga.contracts import (
    Batch,
    LossOutput,
    ModelConfig,
    Objective,
    ObjectiveConfig,
    with_initial_values,
)
from quadriga.errors import UserError, nearest_divisors, nearest_multiples
from quadriga.methods.parts.encoders import one_view
from quadriga.models.parts.initialise import Filler, initialise
from quadriga.models.parts.patches import channels_first, channels_last, take_rows, unpatchify
from quadriga.models.parts.positions import sincos_table
from quadriga.models.parts.transformer import Block, BlockShape
from quadriga.models.vit import ViTConfig

VARIANCE_EPS = 1e-6
"""Added to the variance of a patch before its root (the reference implementation's value)."""

_NOISE = randomness.fold("mae mask")


@final
class MAEConfig(ObjectiveConfig):
    """Masked autoencoder with pixel targets."""

    mask_ratio: float = Field(0.75, gt=0, lt=1)
    """Fraction of the patches that is masked."""
    decoder_width: int = Field(512, ge=4, le=2**20)
    """Features of a token in the decoder."""
    decoder_depth: int = Field(8, ge=0, le=10_000)
    """Blocks of the decoder."""
    decoder_heads: int = Field(16, ge=1, le=10_000)
    """Attention heads of the decoder."""
    normalise_pixels: bool = True
    """Whether each target patch is normalised by its own mean and variance."""

    @model_validator(mode="after")
    def _fields_agree(self) -> MAEConfig:
        if self.decoder_width % 4:
            raise ValueError(
                f"decoder_width must be a multiple of 4, but is {self.decoder_width}; "
                + nearest_multiples(self.decoder_width, 4)
            )
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_heads must divide decoder_width ({self.decoder_width}), "
                f"but is {self.decoder_heads}; "
                + nearest_divisors(self.decoder_heads, self.decoder_width)
            )
        return self

    def visible(self, patches: int) -> int:
        """Return how many of an image's patches stay visible, rounded down."""
        return int(patches * (1 - self.mask_ratio))

    def build(self, model: ModelConfig) -> MAE:
        """Make the objective for a vision transformer.

        Raises:
            UserError: `model` is of another kind, or no patch would be visible or masked.
        """
        if not isinstance(model, ViTConfig):
            raise UserError(f"mae needs model.kind=vit, but model.kind is {model.kind()}")
        visible = self.visible(model.patches)
        if not 0 < visible < model.patches:
            raise UserError(
                f"objective.mask_ratio must leave at least one patch visible and one hidden of "
                f"the image's {model.patches}, but is {self.mask_ratio}, which leaves {visible} "
                f"visible; change it, or lower model.patch_px ({model.patch_px})"
            )
        return with_initial_values(lambda: MAE(self, model), MAE.initialise_all)


class Reconstruction(NamedTuple):
    """Pictures of a reconstruction, in the pixel space of the batch's images."""

    masked: Tensor
    """The images with their masked patches set to 0: (batch, channels, height, width)."""
    reconstruction: Tensor
    """float32, the decoder's prediction for every patch, including visible ones; same shape."""
    combined: Tensor
    """float32, the visible patches, and the prediction for the masked ones; same shape."""


@final
class Decoder(nn.Module):
    """Predicts pixels from the encodings of visible patches and mask tokens.

    Tokens stay in the shuffled order, the visible ones first: attention is independent of the
    order of tokens with position embeddings, and the masked patches are one slice.
    """

    positions: Tensor

    def __init__(self, config: MAEConfig, model: ViTConfig) -> None:
        """Make the decoder with undefined values."""
        super().__init__()
        width = config.decoder_width
        self.grid = model.grid
        self.prefix = int(model.class_token)
        self.embed = nn.Linear(model.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("positions", torch.empty(self.prefix + model.patches, width))
        shape = BlockShape(
            width=width,
            heads=config.decoder_heads,
            mlp_width=int(width * model.mlp_ratio),
            qkv_bias=model.qkv_bias,
            norm_eps=model.norm_eps,
        )
        # Numbered after the encoder's blocks, so that no two blocks of the model share a number.
        first = model.depth
        self.blocks = nn.ModuleList(Block(shape, first + i) for i in range(config.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=model.norm_eps)
        self.head = nn.Linear(width, model.patch_pixels)

    def fill(self, filler: Filler) -> None:
        """Draw the mask token from N(0, 0.02^2) and compute the table of positions."""
        filler.normal("mask_token")
        width = self.positions.shape[1]
        filler.copy("positions", sincos_table(self.grid, self.grid, width, self.prefix))

    def forward(
        self,
        codes: Float[Tensor, "batch coded encoder_width"],
        shuffle: Int[Tensor, "batch patches"],
        first: int,
    ) -> Float[Tensor, "batch predicted pixels"]:
        """Predict the pixels of the patches from the shuffled position `first` on.

        Args:
            codes: Encoded tokens: the class token if there is one, then the visible patches in
                the order of `shuffle`.
            shuffle: int64 number in the image of each patch, the visible ones first.
            first: 0 to predict all patches, the number of visible ones to predict the masked ones.

        Returns:
            Pixels in (row, column, channel) order.
        """
        batch, patches = shuffle.shape
        hidden = self.prefix + patches - codes.shape[1]
        tokens = torch.cat([self.embed(codes), self.mask_token.expand(batch, hidden, -1)], dim=1)
        rows = functional.pad(shuffle + self.prefix, (self.prefix, 0))
        tokens = tokens + functional.embedding(rows, self.positions)
        for block in self.blocks:
            tokens = block(tokens)
        pixels: Tensor = self.head(self.norm(tokens[:, self.prefix + first :]))
        return pixels


@final
class MAE(Objective):
    """A vision transformer that is trained to reconstruct masked patches."""

    entry_points = ("features", "reconstruct")

    def __init__(self, config: MAEConfig, model: ViTConfig) -> None:
        """Make encoder and decoder with undefined values."""
        super().__init__()
        self.config = config
        self.visible = config.visible(model.patches)
        self.tokens_per_sample = model.patches
        self.encoder = model.build()
        self.decoder = Decoder(config, model)

    def initialise(self, seed: int) -> None:
        """Fill every tensor: Xavier-uniform linear maps, tokens N(0, 0.02^2), norms 1 and 0."""
        initialise(self, seed)

    def forward(
        self, batch: Batch, noise: Float[Tensor, "batch patches"] | None = None
    ) -> LossOutput:
        """Sum the squared error over the masked patches, each averaged over its pixels.

        Args:
            batch: ``image``, normalised, and ``key``, from which mask and drop path are drawn.
            noise: Replaces the drawn mask; the patches with the smallest values stay visible.

        Returns:
            The sum, and the number of masked patches as its count.
        """
        patches = self.encoder.patches(one_view(batch, "mae"))
        shuffle = self.shuffle(batch["key"]) if noise is None else _order(noise)
        codes = self._encode(patches, shuffle, batch["key"])
        predicted = self.decoder(codes, shuffle, self.visible)
        hidden = take_rows(patches, shuffle[:, self.visible :])
        target = channels_last(hidden.float(), self.encoder.config.channels)
        if self.config.normalise_pixels:
            mean, deviation = _statistics(target)
            target = (target - mean) / deviation
        loss = functional.mse_loss(predicted.float(), target, reduction="sum") / target.shape[-1]
        count = loss.new_full((), target.shape[0] * target.shape[1])
        return LossOutput.of(loss, count, {})

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of masked patches."""
        hidden = self.encoder.config.patches - self.visible
        key = batch["key"]
        return {"loss": torch.tensor(len(key) * hidden, device=key.device)}

    def shuffle(self, keys: Int[Tensor, " batch"]) -> Int[Tensor, "batch patches"]:
        """Draw the order of each image's patches, the visible ones first, from its key alone."""
        return _order(randomness.uniform_rows(keys, _NOISE, self.encoder.config.patches))

    def features(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch width"]:
        """Return one vector per whole image from the encoder, pooled as the model says."""
        return self.encoder.features(images)

    @torch.no_grad()
    def reconstruct(
        self, batch: Batch, noise: Float[Tensor, "batch patches"] | None = None
    ) -> Reconstruction:
        """Mask patches as `forward` does and return pictures of the decoder's predictions.

        Where targets are normalised per patch, a prediction is scaled back with the mean and
        variance of the original patch.

        Args:
            batch: As for `forward`.
            noise: As for `forward`.
        """
        model = self.encoder.config
        patches = self.encoder.patches(batch["image"])
        shuffle = self.shuffle(batch["key"]) if noise is None else _order(noise)
        codes = self._encode(patches, shuffle, batch["key"])
        restore = shuffle.argsort(dim=1)
        predicted = take_rows(self.decoder(codes, shuffle, 0).float(), restore)
        predicted = channels_first(predicted, model.channels)
        if self.config.normalise_pixels:
            mean, deviation = _statistics(patches.float())
            predicted = predicted * deviation + mean
        is_visible = (restore < self.visible)[:, :, None]
        pictures = (
            patches * is_visible,
            predicted,
            torch.where(is_visible, patches.float(), predicted),
        )
        return Reconstruction(*(unpatchify(p, model.patch_px, model.grid) for p in pictures))

    def _encode(
        self,
        patches: Float[Tensor, "batch patches pixels"],
        shuffle: Int[Tensor, "batch patches"],
        keys: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch coded width"]:
        """Encode the visible patches and drop the registers, which the decoder does not use.

        Projecting only the visible patches equals embedding the whole image and dropping the rest.
        """
        visible = shuffle[:, : self.visible]
        tokens = self.encoder.embed_patches(take_rows(patches, visible), visible)
        codes = self.encoder.encode(tokens, randomness.pass_keys(keys, "encoder"))
        registers = self.encoder.config.registers
        if registers == 0:
            return codes
        first = self.encoder.prefix
        return torch.cat([codes[:, : first - registers], codes[:, first:]], dim=1)


def _order(noise: Float[Tensor, "batch patches"]) -> Int[Tensor, "batch patches"]:
    # Stable, so that with equal draws the mask does not depend on the device's sorting.
    return noise.argsort(dim=1, stable=True)


def _statistics(patches: Float[Tensor, "*any pixels"]) -> tuple[Tensor, Tensor]:
    """Return each patch's mean and standard deviation (unbiased variance), each (*any, 1)."""
    if patches.numel() == 0:  # var_mean would warn of too few degrees of freedom
        return patches[..., :1], patches[..., :1]
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + VARIANCE_EPS).sqrt()
