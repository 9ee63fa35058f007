"""Several views of an image for self-supervised training: multi-crop and the papers' colours."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from pydantic import Field, model_validator

from quadriga.contracts import Batch, Dataset, Sample, Split, StepPlan, Transform, ViewsConfig
from quadriga.data.images.decode import Interpolation, OpenedImage, resize
from quadriga.data.images.record import ImageRecord
from quadriga.data.views.batched import make_views
from quadriga.data.views.crops import (
    EvaluationView,
    Rgb,
    check_images,
    check_range,
    example,
    normalise,
    random_box,
    sample_of,
)
from quadriga.data.views.making import make_view
from quadriga.data.views.policies import (
    PRESETS,
    Policy,
    PolicyChanges,
    Preset,
    Range,
    ViewDraws,
    draw_view,
)
from quadriga.randomness import Stream, fold


class ViewGroup(NamedTuple):
    """Views of one size, which are one tensor of a batch."""

    name: str
    """Name of the tensor."""
    px: int
    """Height and width of a view."""
    scale: Range
    """Smallest and largest fraction of the image's area."""
    policies: tuple[Policy, ...]
    """The augmentation of each view."""

    def draw(self, height: int, width: int, key: int, config: MultiCropConfig) -> list[ViewDraws]:
        """Draw the views of an image of this size."""
        draws = []
        for number, policy in enumerate(self.policies):
            own = fold(key, self.name, number)
            box = random_box(height, width, self.scale, config.crop_ratio, Stream(own))
            stream = Stream(fold(own, "augment"))
            draws.append(draw_view(policy, box, config.flip_probability, stream))
        return draws


@final
class MultiCropConfig(ViewsConfig):
    """Large and small views of an image, each with its own crop and colours.

    Evaluation: the shorter side is resized, then the centre is cropped.
    """

    image_px: int = Field(default=224, gt=0, le=2**14)
    """Height and width of a large view in pixels."""
    crops: int = Field(default=2, ge=2, le=16)
    """Number of large views: a batch has ``crops`` (batch, crops, 3, image_px, image_px)."""
    crop_scale: Range = (0.2, 1.0)
    """Smallest and largest fraction of the image's area in a large view."""
    local_crops: int = Field(default=0, ge=0, le=64)
    """Number of small views (SwAV, arXiv:2006.09882): a batch has ``local_crops`` (batch,
    local_crops, 3, local_px, local_px)."""
    local_px: int = Field(default=96, gt=0, le=2**14)
    """Height and width of a small view in pixels."""
    local_scale: Range = (0.05, 0.2)
    """Smallest and largest fraction of the image's area in a small view."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a crop."""
    interpolation: Interpolation = "bicubic"
    """Filter of the antialiased resize."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability that a view is mirrored left to right."""
    augmentation: Preset = "simclr"
    """The paper whose colours, blur and solarisation are used."""
    every: PolicyChanges = PolicyChanges()
    """What differs from the paper in every view."""
    first: PolicyChanges = PolicyChanges()
    """What differs in the first large view."""
    second: PolicyChanges = PolicyChanges()
    """What differs in the other large views."""
    local: PolicyChanges = PolicyChanges()
    """What differs in the small views."""
    on: Literal["workers", "device"] = "workers"
    """workers: crops and colours in the worker processes. device: a worker only decodes the image
    and draws; the views are made on the device, for the whole batch at once."""
    picture_scale: float = Field(default=1.5, ge=0.25, le=16)
    """With on=device: side of the square of pixels in which an image goes to the device /
    `image_px`. A larger image is made smaller; 1 is right for images of `image_px`."""
    mean: Rgb = (0.485, 0.456, 0.406)
    """Mean of each channel, for values from 0 to 1; subtracted."""
    std: Rgb = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, for values from 0 to 1; divided by."""
    test_crop_fraction: float = Field(default=0.875, gt=0, le=1)
    """View side / resized shorter side in evaluation; 1 keeps the whole shorter side."""

    @model_validator(mode="after")
    def _check_fields(self) -> MultiCropConfig:
        check_range("crop_scale", self.crop_scale, 1.0)
        check_range("local_scale", self.local_scale, 1.0)
        check_range("crop_ratio", self.crop_ratio, None)
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0 in every channel, but is {list(self.std)}")
        return self

    @property
    def groups(self) -> tuple[ViewGroup, ...]:
        """The large views, then the small ones if there are any."""
        first, second, local = (
            own.of(self.every.of(preset))
            for own, preset in zip(
                (self.first, self.second, self.local), PRESETS[self.augmentation], strict=True
            )
        )
        large = (first, *(self.crops - 1) * (second,))
        groups = (
            ViewGroup("crops", self.image_px, self.crop_scale, large),
            ViewGroup("local_crops", self.local_px, self.local_scale, self.local_crops * (local,)),
        )
        return groups if self.local_crops else groups[:1]

    def build(self, split: Split) -> Transform:
        """Return the random training views, or the deterministic evaluation view."""
        if split == "train":
            return MultiCropView(self) if self.on == "workers" else DeviceView(self)
        return EvaluationView(
            self.image_px, self.test_crop_fraction, self.interpolation, self.mean, self.std
        )

    def check(self, dataset: Dataset, split: Split, plan: StepPlan | None) -> None:
        """Check that the records are images.

        Raises:
            UserError: The records are text.
        """
        check_images(self, dataset)


@final
class MultiCropView(Transform):
    """Crops and colours in a worker; normalisation on the device."""

    def __init__(self, config: MultiCropConfig) -> None:
        """Keep the config and its groups of views."""
        self.config, self._groups = config, config.groups

    def sample(self, record: ImageRecord, key: int) -> Sample:
        """Decode one image and make its views.

        Returns:
            ``crops`` uint8 (crops, 3, image_px, image_px); ``local_crops`` uint8 (local_crops, 3,
            local_px, local_px) if there are any; ``label`` int64 () if there is one.

        Raises:
            UnreadableSample: The image cannot be decoded.
        """
        image = OpenedImage(record)
        sample: Sample = {}
        for group in self._groups:
            px = group.px
            views = np.empty((len(group.policies), 3, px, px), np.uint8)
            draws = group.draw(image.height, image.width, key, self.config)
            for place, drawn in enumerate(draws):
                pixels = image.crop(drawn.box, px, px)
                views[place] = make_view(pixels, drawn, px, self.config.interpolation)
            sample |= sample_of(views, record.label, group.name)
        return sample

    def batch(self, batch: Batch) -> Batch:
        """Normalise all views to float32."""
        mean, std = self.config.mean, self.config.std
        return {
            name: normalise(values, mean, std) if "crops" in name else values
            for name, values in batch.items()
        }

    def example(self, size: int, device: torch.device) -> Batch:
        """Return a batch of `size` samples with arbitrary values."""
        return _example(self.config, size, device)


@final
class DeviceView(Transform):
    """Decoding and draws in a worker; the views on the device.

    The draws are those of `MultiCropView`, and so are the views of images that are not made
    smaller, but for the roundings to whole levels that are not made.
    """

    def __init__(self, config: MultiCropConfig) -> None:
        """Keep the config and its groups of views."""
        self.config, self._groups = config, config.groups
        self._side = math.ceil(config.image_px * config.picture_scale)

    def sample(self, record: ImageRecord, key: int) -> Sample:
        """Decode one image, make it smaller if need be, and draw its views.

        Returns:
            ``picture`` uint8 (3, side, side), the image in the upper left corner; ``draws``
            float32 (views, `NUMBERS`); ``label`` int64 () if there is one.

        Raises:
            UnreadableSample: The image cannot be decoded.
        """
        image, side = OpenedImage(record), self._side
        factor = min(1.0, side / max(image.height, image.width))
        height, width = (max(1, round(factor * v)) for v in (image.height, image.width))
        picture = np.zeros((3, side, side), np.uint8)
        pixels = image.crop(image.whole, height, width)
        picture[:, :height, :width] = resize(pixels, height, width, self.config.interpolation)
        draws = [
            drawn.numbers()
            for group in self._groups
            for drawn in group.draw(height, width, key, self.config)
        ]
        return {**sample_of(picture, record.label, "picture"), "draws": np.stack(draws)}

    def batch(self, batch: Batch) -> Batch:
        """Make the views and normalise them to float32."""
        config = self.config
        made = {name: v for name, v in batch.items() if name not in ("picture", "draws")}
        draws = iter(batch["draws"].unbind(1))
        for group in self._groups:
            views = [
                make_views(batch["picture"], next(draws), policy, group.px, config.interpolation)
                for policy in group.policies
            ]
            made[group.name] = normalise(torch.stack(views, 1), config.mean, config.std)
        return made

    def example(self, size: int, device: torch.device) -> Batch:
        """Return a batch of `size` samples with arbitrary values."""
        return _example(self.config, size, device)


def _example(config: MultiCropConfig, size: int, device: torch.device) -> Batch:
    shapes = {g.name: (size, len(g.policies), 3, g.px, g.px) for g in config.groups}
    views = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
    return {**example(size, 1, device, config.crops), **views}
