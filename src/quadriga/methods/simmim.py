"""SimMIM (Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", CVPR 2022,
arXiv:2111.09886) of a vision transformer.

Large square cells of an image are masked. The encoder sees a token in the place of each masked
patch, and one linear map predicts the masked pixels.
"""

from __future__ import annotations

import math
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
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
from quadriga.errors import UserError
from quadriga.methods.parts.encoders import one_view
from quadriga.methods.parts.masks import masked_first, random_masks
from quadriga.models.parts.initialise import Filler, initialise
from quadriga.models.parts.patches import take_rows
from quadriga.models.vit import ViTConfig


@final
class SimMIMConfig(ObjectiveConfig):
    """Masked cells of pixels, predicted from the encoder's tokens by one linear map."""

    mask_px: int = Field(32, ge=1, le=2**14)
    """Side of the square cells that are masked as a whole."""
    mask_ratio: float = Field(0.6, gt=0, le=1)
    """Fraction of the cells that is masked, rounded up to whole cells."""

    def build(self, model: ModelConfig) -> SimMIM:
        """Make the objective for a vision transformer.

        Raises:
            UserError: `model` is of another kind, or the cells do not fit image and patches.
        """
        if not isinstance(model, ViTConfig):
            raise UserError(f"simmim needs model.kind=vit, but model.kind is {model.kind()}")
        if model.image_px % self.mask_px or self.mask_px % model.patch_px:
            raise UserError(
                f"objective.mask_px must divide model.image_px ({model.image_px}) and be a "
                f"multiple of model.patch_px ({model.patch_px}), but is {self.mask_px}; set it to "
                f"{model.patch_px} to mask single patches"
            )
        return with_initial_values(lambda: SimMIM(self, model), SimMIM.initialise_all)


@final
class SimMIM(Objective):
    """A vision transformer with a mask token and a linear decoder."""

    entry_points = ("features",)

    def __init__(self, config: SimMIMConfig, model: ViTConfig) -> None:
        """Make all modules with undefined values."""
        super().__init__()
        self.config = config
        self.cells = model.image_px // config.mask_px
        """Cells along a side of the image."""
        self.patches_per_side = config.mask_px // model.patch_px
        """Patches along a side of a cell."""
        self.masked_cells = math.ceil(self.cells**2 * config.mask_ratio)
        self.masked_patches = self.masked_cells * self.patches_per_side**2
        self.tokens_per_sample = model.patches
        self.encoder = model.build()
        self.mask_token = nn.Parameter(torch.empty(model.width))
        self.decoder = nn.Linear(model.width, model.patch_pixels)

    def initialise(self, seed: int) -> None:
        """Fill every tensor: linear maps and tokens from a truncated N(0, 0.02^2)."""
        initialise(self, seed, "truncated_normal")

    def fill(self, filler: Filler) -> None:
        """Draw the mask token from a truncated N(0, 0.02^2)."""
        filler.truncated_normal("mask_token")

    def forward(self, batch: Batch) -> LossOutput:
        """Sum the absolute error over the masked pixels: section 3.4 of the paper.

        ``L = |y_M - x_M|_1 / Omega(x_M)`` with the pixels x, the predictions y, the masked places M
        and their number Omega, channels counted. Only masked patches are decoded.

        Args:
            batch: ``image``, normalised, and ``key``, from which mask and drop path are drawn.

        Returns:
            The sum of the means of the masked patches, and the number of these as its count.
        """
        images, key = one_view(batch, "simmim"), batch["key"]
        pixels = self.encoder.patches(images)
        masks = self.masks(key)
        embedded = self.encoder.embed(images, masks, self.mask_token)
        tokens = self.encoder.encode(embedded, randomness.pass_keys(key, "encoder"))
        order, _ = masked_first(masks, self.masked_patches)
        predicted = self.decoder(take_rows(tokens[:, self.encoder.prefix :], order))
        target = take_rows(pixels, order)
        error = functional.l1_loss(predicted.float(), target.float(), reduction="sum")
        count = error.new_full((), len(key) * self.masked_patches)
        return LossOutput.of(error / pixels.shape[-1], count)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of masked patches."""
        key = batch["key"]
        return {"loss": torch.tensor(len(key) * self.masked_patches, device=key.device)}

    def masks(self, keys: Int[Tensor, " batch"]) -> Bool[Tensor, "batch patches"]:
        """Draw the masked cells of each image from its key; True for each patch within them."""
        cells = self.cells
        counts = torch.full_like(keys, self.masked_cells)
        masks = random_masks(keys, (cells, cells), counts).view(-1, cells, cells)
        for dim in (1, 2):
            masks = masks.repeat_interleave(self.patches_per_side, dim)
        return masks.flatten(1)

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch width"]:
        """Return one vector per whole image from the encoder, pooled as the model says."""
        return self.encoder.features(images)
