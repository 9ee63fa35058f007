"""Views of small images: shifted by a few pixels and flipped, without resampling.

This is the usual augmentation of small images (Krizhevsky, "Learning Multiple Layers of Features
from Tiny Images", 2009; He et al., CVPR 2016, section 4.2): a random crop of the padded image. It
is applied to the whole batch on the device; a worker only decodes the image.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Bool, Int, UInt8
from pydantic import Field, model_validator
from torch import Tensor

from quadriga.config.base import Later
from quadriga.contracts import Batch, Dataset, Sample, Split, StepPlan, Transform, ViewsConfig
from quadriga.data.images.record import ImageRecord
from quadriga.data.views.crops import (
    EvaluationView,
    Rgb,
    check_images,
    crop_keys,
    example,
    normalise,
)
from quadriga.randomness import fold, uniform_rows

_DRAWS = fold("shift and flip")


@final
class ShiftedViewsConfig(ViewsConfig):
    """One view per image, or several: the whole image, in training randomly shifted and flipped."""

    image_px: int = Field(default=32, gt=0, le=2**14)
    """Height and width of a view in pixels; images of another size are resized first."""
    crops: Later[int] = Field(default=1, ge=1, le=16)
    """Number of training views of an image. With more than one, a batch has ``crops`` (batch,
    crops, 3, image_px, image_px) instead of ``image``, and each view has its own random draws."""
    shift_px: int = Field(default=4, ge=0, le=2**14)
    """Largest shift in each direction in pixels."""
    fill: Literal["zero", "edge"] = "zero"
    """Fill of the pixels from outside the image: black, or the nearest pixel of the image."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability that a training view is mirrored left to right."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter of the antialiased resize of images of another size."""
    mean: Rgb = (0.485, 0.456, 0.406)
    """Mean of each channel, for values from 0 to 1; subtracted."""
    std: Rgb = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, for values from 0 to 1; divided by."""

    @model_validator(mode="after")
    def _check_ranges(self) -> ShiftedViewsConfig:
        if self.shift_px >= self.image_px:
            raise ValueError(
                f"shift_px must be below image_px ({self.image_px}), but is {self.shift_px}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0 in every channel, but is {list(self.std)}")
        return self

    def build(self, split: Split) -> Transform:
        """Return the random training view, or the deterministic evaluation view."""
        whole = EvaluationView(self.image_px, 1.0, self.interpolation, self.mean, self.std)
        return ShiftedView(self, whole) if split == "train" else whole

    def check(self, dataset: Dataset, split: Split, plan: StepPlan | None) -> None:
        """Check that the records are images.

        Raises:
            UserError: The records are text.
        """
        check_images(self, dataset)


@final
class ShiftedView(Transform):
    """Whole images from the CPU; shift, flip and normalisation on the device."""

    def __init__(self, config: ShiftedViewsConfig, whole: EvaluationView) -> None:
        """Keep the config, and the view that turns a record into a whole image."""
        self.config = config
        self.whole = whole

    def sample(self, record: ImageRecord, key: int) -> Sample:
        """Decode one image; it is resized only if its size is not `image_px`.

        Returns:
            ``image`` uint8 (3, image_px, image_px), and ``label`` int64 () if there is one.

        Raises:
            UnreadableSample: The image cannot be decoded.
        """
        return self.whole.sample(record, key)

    def batch(self, batch: Batch) -> Batch:
        """Shift and flip each view by draws from its own key, then normalise all to float32."""
        config, key = self.config, batch["key"]
        if config.crops == 1:
            return {**batch, "image": self._view(batch["image"], key)}
        views = [self._view(batch["image"], own) for own in crop_keys(key, config.crops)]
        others = {name: tensor for name, tensor in batch.items() if name != "image"}
        return {**others, "crops": torch.stack(views, dim=1)}

    def _view(self, images: Tensor, key: Tensor) -> Tensor:
        config = self.config
        draws = uniform_rows(key, _DRAWS, 3)
        shifts = (draws[:, :2] * (2 * config.shift_px + 1)).long() - config.shift_px
        flips = draws[:, 2] < config.flip_probability
        return normalise(shifted(images, shifts, flips, config.fill), config.mean, config.std)

    def example(self, size: int, device: torch.device) -> Batch:
        """Return a batch of `size` samples with arbitrary values."""
        return example(size, self.config.image_px, device, self.config.crops)


def shifted(
    images: UInt8[Tensor, "batch channels height width"],
    shifts: Int[Tensor, "batch 2"],
    flips: Bool[Tensor, " batch"],
    fill: Literal["zero", "edge"],
) -> UInt8[Tensor, "batch channels height width"]:
    """Move each image down and to the right, then mirror some left to right.

    Args:
        images: uint8 images.
        shifts: int64 pixels down and to the right (negative: up and left), less than the size.
        flips: bool (batch,): whether an image is mirrored.
        fill: Fill of the pixels from outside the image.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - shifts[:, :1]
    columns = torch.arange(width, device=images.device) - shifts[:, 1:]
    columns = torch.where(flips[:, None], columns.flip(-1), columns)
    place = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    flat = images.flatten(2)
    moved = flat.gather(2, place.flatten(1)[:, None].expand(-1, flat.shape[1], -1))
    moved = moved.reshape(images.shape)
    if fill == "edge":
        return moved
    row_inside = (rows >= 0) & (rows < height)
    column_inside = (columns >= 0) & (columns < width)
    return moved * (row_inside[:, :, None] & column_inside[:, None, :])[:, None]
