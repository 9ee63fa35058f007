"""Several views of an image for self-supervised training: multi-crop and the papers' colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator

from quadriga.contracts import Batch, Dataset, Sample, Split, StepPlan, Transform, ViewsConfig
from quadriga.data.images.decode import Interpolation, OpenedImage, resize
from quadriga.data.images.record import ImageRecord
from quadriga.data.views.colours import blend_, blur, grey_of, mean_grey, rotate_hue
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

    def policies(self) -> tuple[list[Policy], list[Policy]]:
        """Return the policies of the large and of the small views, one for each view."""
        first, second, local = (
            own.of(self.every.of(preset))
            for own, preset in zip(
                (self.first, self.second, self.local), PRESETS[self.augmentation], strict=True
            )
        )
        return [first] + (self.crops - 1) * [second], self.local_crops * [local]

    def build(self, split: Split) -> Transform:
        """Return the random training views, or the deterministic evaluation view."""
        if split == "train":
            return MultiCropView(self)
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
        """Keep the config and its policies."""
        self.config = config
        self._large, self._small = config.policies()

    def sample(self, record: ImageRecord, key: int) -> Sample:
        """Decode one image and make its views.

        Returns:
            ``crops`` uint8 (crops, 3, image_px, image_px); ``local_crops`` uint8 (local_crops, 3,
            local_px, local_px) if there are any; ``label`` int64 () if there is one.

        Raises:
            UnreadableSample: The image cannot be decoded.
        """
        config, image = self.config, OpenedImage(record)
        large, small = self._draws(image.height, image.width, key)
        sample = sample_of(self._views(image, large, config.image_px), record.label, "crops")
        if small:
            sample["local_crops"] = self._views(image, small, config.local_px)
        return sample

    def _draws(self, height: int, width: int, key: int) -> tuple[list[ViewDraws], list[ViewDraws]]:
        config = self.config
        kinds = (
            ("crop", self._large, config.crop_scale),
            ("local", self._small, config.local_scale),
        )
        large, small = (
            [
                self._drawn(height, width, scale, policy, fold(key, name, number))
                for number, policy in enumerate(policies)
            ]
            for name, policies, scale in kinds
        )
        return large, small

    def _drawn(self, height: int, width: int, scale: Range, policy: Policy, key: int) -> ViewDraws:
        config = self.config
        box = random_box(height, width, scale, config.crop_ratio, Stream(key))
        return draw_view(policy, box, config.flip_probability, Stream(fold(key, "augment")))

    def _views(
        self, image: OpenedImage, draws: Sequence[ViewDraws], px: int
    ) -> npt.NDArray[np.uint8]:
        views = np.empty((len(draws), 3, px, px), np.uint8)
        for place, drawn in enumerate(draws):
            cropped = resize(image.crop(drawn.box, px, px), px, px, self.config.interpolation)
            views[place] = coloured(cropped[..., ::-1] if drawn.flipped else cropped, drawn)
        return views

    def batch(self, batch: Batch) -> Batch:
        """Normalise all views to float32."""
        mean, std = self.config.mean, self.config.std
        names = [name for name in ("crops", "local_crops") if name in batch]
        return {**batch, **{name: normalise(batch[name], mean, std) for name in names}}

    def example(self, size: int, device: torch.device) -> Batch:
        """Return a batch of `size` samples with arbitrary values."""
        config = self.config
        batch = example(size, config.image_px, device, config.crops)
        if config.local_crops:
            shape = (size, config.local_crops, 3, config.local_px, config.local_px)
            batch["local_crops"] = torch.zeros(shape, device=device)
        return batch


def coloured(view: npt.NDArray[np.uint8], drawn: ViewDraws) -> npt.NDArray[np.uint8]:
    """Jitter, make grey, blur and solarise one view.

    Args:
        view: uint8 (3, height, width).
        drawn: What was drawn for it.

    Returns:
        uint8 (3, height, width), or (1, height, width) if all channels are the same.
    """
    if drawn.blends or drawn.hue or drawn.grey or drawn.sigma:
        images = torch.from_numpy(np.ascontiguousarray(view)).to(torch.float32)[None]
        for number, (name, factor) in enumerate(drawn.blends):
            if drawn.hue and number == drawn.before_hue:
                images = rotate_hue(images, drawn.hue)
            if name == "brightness":
                blend_(images, 0.0, factor)
            elif name == "contrast":
                blend_(images, mean_grey(images), factor)
            else:
                blend_(images, grey_of(images), factor)
        if drawn.hue and drawn.before_hue == len(drawn.blends):
            images = rotate_hue(images, drawn.hue)
        if drawn.grey:
            images = grey_of(images)
        if drawn.sigma:
            images = blur(images, drawn.sigma)
        view = images[0].add_(0.5).to(torch.uint8).numpy()
    return np.minimum(view, ~view) if drawn.solarised else view
