"""The standard views of images: random resized crop and flip, and the evaluation crop."""

from __future__ import annotations

import functools
import math
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import Field, model_validator
from torch import Tensor

from quadriga.config.base import Later, Number
from quadriga.contracts import Batch, Dataset, Sample, Split, StepPlan, Transform, ViewsConfig
from quadriga.data.images.decode import Box, Interpolation, OpenedImage, resize
from quadriga.data.images.record import ImageRecord
from quadriga.errors import UserError
from quadriga.randomness import Stream, fold, pass_keys, uniform_rows

_FLIP = fold("flip")
_LONGEST = 16
# Images more elongated than this are cropped to their centre before they are resized: scaled to
# the output's height, a strip of one pixel by 60,000 would need gigabytes.

Rgb = tuple[Number, Number, Number]


@final
class ImageViewsConfig(ViewsConfig):
    """One view per image, or several views for training.

    Training: a random resized crop with a random flip. Evaluation: the shorter side is resized,
    then the centre is cropped.
    """

    image_px: int = Field(default=224, gt=0, le=2**14)
    """Height and width of a view in pixels."""
    crops: Later[int] = Field(default=1, ge=1, le=16)
    """Number of training views of an image. With more than one, a batch has ``crops`` (batch,
    crops, 3, image_px, image_px) instead of ``image``, and each view has its own random draws."""
    crop_scale: tuple[Number, Number] = (0.2, 1.0)
    """Smallest and largest fraction of the image's area in a training crop."""
    crop_ratio: tuple[Number, Number] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a training crop."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter of the antialiased resize."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability that a training view is mirrored left to right."""
    mean: Rgb = (0.485, 0.456, 0.406)
    """Mean of each channel, for values from 0 to 1; subtracted."""
    std: Rgb = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, for values from 0 to 1; divided by."""
    test_crop_fraction: float = Field(default=0.875, gt=0, le=1)
    """View side / resized shorter side in evaluation; 1 keeps the whole shorter side."""

    @model_validator(mode="after")
    def _check_ranges(self) -> ImageViewsConfig:
        check_range("crop_scale", self.crop_scale, 1.0)
        check_range("crop_ratio", self.crop_ratio, None)
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0 in every channel, but is {list(self.std)}")
        return self

    def build(self, split: Split) -> Transform:
        """Return the random training view, or the deterministic evaluation view."""
        if split == "train":
            return TrainingView(self)
        return EvaluationView(
            self.image_px, self.test_crop_fraction, self.interpolation, self.mean, self.std
        )

    def check(self, dataset: Dataset, split: Split, plan: StepPlan | None) -> None:
        """Check that the records are images.

        Raises:
            UserError: The records are text.
        """
        check_images(self, dataset)


def check_range(name: str, bounds: tuple[float, float], most: float | None) -> None:
    """Check that a field holds two ascending shares, or ratios where `most` is None.

    Raises:
        ValueError: It does not.
    """
    if 0 < bounds[0] <= bounds[1] <= (most or bounds[1]):
        return
    what = "ratios above 0" if most is None else f"shares in (0, {most:g}]"
    raise ValueError(f"{name} must be two ascending {what}, but is [{bounds[0]},{bounds[1]}]")


def check_images(views: ViewsConfig, dataset: Dataset) -> None:
    """Check that the records of a data set are images, for views of images.

    Raises:
        UserError: The records are text.
    """
    if dataset.vocabulary_size is not None:
        raise UserError(
            f"views.kind must be one of texts, since the data is text, but is {views.kind()}; set "
            "views.kind=sentence_pairs for a corpus or text_pairs for labelled texts, or take "
            "another data.kind"
        )


@final
class TrainingView(Transform):
    """A random resized crop on the CPU; flip and normalisation on the device."""

    def __init__(self, config: ImageViewsConfig) -> None:
        """Keep the config."""
        self.config = config

    def sample(self, record: ImageRecord, key: int) -> Sample:
        """Decode one image and crop it `crops` times.

        Returns:
            ``image`` uint8 (3, image_px, image_px), or ``crops`` uint8 (crops, 3, image_px,
            image_px); and ``label`` int64 () if there is one.

        Raises:
            UnreadableSample: The image cannot be decoded.
        """
        config = self.config
        image = OpenedImage(record)
        if config.crops == 1:
            return sample_of(self._view(image, key), record.label)
        keys = [fold(key, "crop", number) for number in range(config.crops)]
        views = np.stack([self._view(image, own) for own in keys])
        return sample_of(views, record.label, "crops")

    def _view(self, image: OpenedImage, key: int) -> UInt8[np.ndarray, "3 image_px image_px"]:
        config = self.config
        box = random_box(
            image.height, image.width, config.crop_scale, config.crop_ratio, Stream(key)
        )
        pixels = image.crop(box, config.image_px, config.image_px)
        return resize(pixels, config.image_px, config.image_px, config.interpolation)

    def batch(self, batch: Batch) -> Batch:
        """Flip each view by a draw from its own key, then normalise all to float32."""
        config, key = self.config, batch["key"]
        if config.crops == 1:
            images = flip(batch["image"], key, config.flip_probability)
            return {**batch, "image": normalise(images, config.mean, config.std)}
        own = crop_keys(key, config.crops)
        pairs = zip(batch["crops"].unbind(1), own, strict=True)
        crops = torch.stack([flip(view, k, config.flip_probability) for view, k in pairs], dim=1)
        return {**batch, "crops": normalise(crops, config.mean, config.std)}

    def example(self, size: int, device: torch.device) -> Batch:
        """Return a batch of `size` samples with arbitrary values."""
        return example(size, self.config.image_px, device, self.config.crops)


@final
class EvaluationView(Transform):
    """Resizes the shorter side to ``image_px / test_crop_fraction``, then crops the centre."""

    def __init__(
        self,
        image_px: int,
        test_crop_fraction: float,
        interpolation: Interpolation,
        mean: Rgb,
        std: Rgb,
    ) -> None:
        """Keep the arguments, which are fields of `ImageViewsConfig`."""
        self._image_px = image_px
        self._side = math.floor(image_px / test_crop_fraction)
        self._interpolation = interpolation
        self._mean, self._std = mean, std

    def sample(self, record: ImageRecord, key: int) -> Sample:
        """Decode one image at full resolution, resize and crop it; `key` is not used.

        Returns:
            ``image`` uint8 (3, image_px, image_px), and ``label`` int64 () if there is one.

        Raises:
            UnreadableSample: The image cannot be decoded.
        """
        image = OpenedImage(record)
        pixels = image.crop(not_too_long(image.height, image.width))
        return sample_of(
            centre(pixels, self._side, self._image_px, self._interpolation), record.label
        )

    def batch(self, batch: Batch) -> Batch:
        """Normalise the images to float32."""
        return {**batch, "image": normalise(batch["image"], self._mean, self._std)}

    def example(self, size: int, device: torch.device) -> Batch:
        """Return a batch of `size` views with arbitrary values."""
        return example(size, self._image_px, device)


def random_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    stream: Stream,
) -> Box:
    """Draw the box of a random resized crop (Szegedy et al., "Going deeper with convolutions").

    The area is uniform, the logarithm of the aspect ratio is uniform, the position is uniform.
    After ten boxes that do not fit, the largest central box with an allowed ratio is returned.

    Args:
        height: Image height in pixels.
        width: Image width in pixels.
        scale: Smallest and largest fraction of the area.
        ratio: Smallest and largest width / height.
        stream: Source of the random draws.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * stream.uniform(*scale)
        aspect = math.exp(stream.uniform(low, high))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = stream.integer(height - box_height + 1)
            left = stream.integer(width - box_width + 1)
            return Box(top, left, box_height, box_width)
    box_height = min(height, max(1, round(width / ratio[0])))
    box_width = min(width, max(1, round(height * ratio[1])))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def centre(
    pixels: UInt8[np.ndarray, "in_height in_width 3"],
    side: int,
    image_px: int,
    interpolation: Interpolation,
) -> UInt8[np.ndarray, "3 {image_px} {image_px}"]:
    """Resize the shorter side to `side`, keeping the aspect ratio, and crop the centre.

    Args:
        pixels: uint8 RGB pixels.
        side: Length of the resized shorter side in pixels, at least `image_px`.
        image_px: Side of the square crop in pixels.
        interpolation: Filter of the resize.
    """
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    height, width = side * height // shorter, side * width // shorter
    resized = resize(pixels, height, width, interpolation)
    top, left = round((height - image_px) / 2), round((width - image_px) / 2)
    return np.ascontiguousarray(resized[:, top : top + image_px, left : left + image_px])


def flip(
    images: UInt8[Tensor, "batch 3 height width"], key: Int64[Tensor, " batch"], probability: float
) -> UInt8[Tensor, "batch 3 height width"]:
    """Mirror images left to right, each with `probability`, by a draw from its own key."""
    if probability == 0:
        return images
    flipped = uniform_rows(key, _FLIP, 1)[:, :, None, None] < probability
    return torch.where(flipped, images.flip(-1), images)


def crop_keys(key: Int64[Tensor, " batch"], crops: int) -> list[Int64[Tensor, " batch"]]:
    """Return, for each crop, the int64 keys (batch,) of its draws on the device."""
    return [pass_keys(key, f"crop {number}") for number in range(crops)]


def normalise(
    images: UInt8[Tensor, "*batch 3 height width"] | Float[Tensor, "*batch 3 height width"],
    mean: Rgb,
    std: Rgb,
) -> Float[Tensor, "*batch 3 height width"]:
    """Return ``(images / 255 - mean) / std`` in float32 as one multiplication and one addition.

    Images that are float32 already are changed in place.
    """
    factor, offset = _affine(mean, std, images.device)
    floats = images.to(torch.float32)
    return torch.addcmul(offset, floats, factor, out=floats)


@functools.lru_cache(maxsize=16)
def _affine(mean: Rgb, std: Rgb, device: torch.device) -> tuple[Tensor, Tensor]:
    # Cached, since creating them again would copy from host to device in every batch.
    factor = [1 / (255 * s) for s in std]
    offset = [-m / s for m, s in zip(mean, std, strict=True)]
    values = torch.tensor([factor, offset], dtype=torch.float32).reshape(2, 3, 1, 1).to(device)
    return values[0], values[1]


def not_too_long(height: int, width: int) -> Box:
    """Return the central part of an image, at most 16 times as long as it is wide."""
    kept_height, kept_width = min(height, _LONGEST * width), min(width, _LONGEST * height)
    return Box((height - kept_height) // 2, (width - kept_width) // 2, kept_height, kept_width)


def sample_of(
    view: UInt8[np.ndarray, "*crops 3 height width"], label: int | None, name: str = "image"
) -> Sample:
    """Return a view, or several, as a sample, with the label if there is one."""
    return {name: view} if label is None else {name: view, "label": np.array(label, np.int64)}


def example(size: int, image_px: int, device: torch.device, crops: int = 1) -> Batch:
    """Return a labelled batch of `size` samples of black views."""
    index = torch.arange(size, device=device)
    name, shape = ("image", (size,)) if crops == 1 else ("crops", (size, crops))
    return {
        name: torch.zeros(*shape, 3, image_px, image_px, device=device),
        "label": torch.zeros_like(index),
        "index": index,
        "key": index,
    }
