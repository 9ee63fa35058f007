"""The views of supervised training: crops, augmentation, random erasing, mixup and cutmix."""

from __future__ import annotations

from typing import Literal, final

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from quadriga.config.base import Number
from quadriga.contracts import Batch, Dataset, Sample, Split, StepPlan, Transform, ViewsConfig
from quadriga.data.images.decode import Interpolation, OpenedImage, resize
from quadriga.data.images.record import ImageRecord
from quadriga.data.views.augmentation import (
    Augmentation,
    ColorJitter,
    FilterChoice,
    RandAugment,
    ThreeAugment,
    parse_rand_augment,
)
from quadriga.data.views.crops import (
    EvaluationView,
    Rgb,
    check_images,
    check_range,
    example,
    flip,
    normalise,
    not_too_long,
    random_box,
    sample_of,
)
from quadriga.data.views.erasing import Erasing, erase
from quadriga.data.views.mixing import Mixing, mix
from quadriga.data.views.operations import apply
from quadriga.errors import UserError
from quadriga.randomness import Stream, fold

Range = tuple[Number, Number]


@final
class SupervisedViewsConfig(ViewsConfig):
    """Views of labelled images; the defaults are those of the DeiT recipes.

    Training: a random crop, flip, augmentation, random erasing, and mixing with another image of
    the micro-batch. Evaluation: the shorter side is resized, then the centre is cropped.
    """

    image_px: int = Field(default=224, gt=0, le=2**14)
    """Height and width of a view in pixels."""
    crop: Literal["resized", "padded"] = "resized"
    """resized: a random part of the image is resized. padded, for small images: the shorter side is
    resized to `image_px`, a border is added, and a random square of the result is cropped."""
    crop_scale: Range = (0.08, 1.0)
    """Smallest and largest fraction of the image's area in a resized crop."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a resized crop."""
    crop_padding: int = Field(default=4, ge=0, le=2**14)
    """Width of the border of a padded crop in pixels."""
    crop_border: Literal["black", "reflect"] = "black"
    """Pixels of the border: black, or the mirrored image."""
    interpolation: FilterChoice = "bicubic"
    """Filter of the resize and of geometric operations; random: drawn for each of them."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability that a training view is mirrored left to right."""
    augment: str = "rand-m9-mstd0.5-inc1"
    """none; three_augment (grey, solarise or blur, then jitter); or RandAugment: ``rand`` and
    parts m (magnitude, 10 is full), n (operations, 2), mstd (standard deviation of the magnitude;
    above 100 uniform from 0), mmax (its bound, 10), p (probability of each operation, 0.5), inc1
    (strength of all operations increases with the magnitude) and w0 (geometric operations more
    often)."""
    color_jitter: float = Field(default=0.4, ge=0, le=1e3)
    """Range of the factors of brightness, contrast and saturation, if `augment` is none or
    three_augment (whose published value is 0.3)."""
    erase_probability: float = Field(default=0.25, ge=0, le=1)
    """Probability that a training view has erased boxes."""
    erase_mode: Literal["pixel", "rand", "const"] = "pixel"
    """Fill of a box. pixel: noise; rand: one random colour; const: the mean colour."""
    erase_count: int = Field(default=1, ge=1, le=100)
    """Largest number of boxes; the number is uniform from 1 on."""
    erase_area: Range = (0.02, 1 / 3)
    """Smallest and largest fraction of the image's area that all boxes cover."""
    erase_aspect: Range = (0.3, 1 / 0.3)
    """Smallest and largest height / width of a box."""
    mixup: float = Field(default=0.8, ge=0, le=1e3)
    """Both parameters of mixup's beta distribution; 0 for no mixup."""
    cutmix: float = Field(default=1.0, ge=0, le=1e3)
    """Both parameters of CutMix's beta distribution; 0 for no CutMix."""
    cutmix_minmax: Range | None = None
    """Smallest and largest side of CutMix's box / the image's side, instead of `cutmix`."""
    mix_probability: float = Field(default=1.0, ge=0, le=1)
    """Probability that a unit of `mix_mode` is mixed."""
    mix_switch_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability of CutMix instead of mixup, if both are on."""
    mix_mode: Literal["batch", "pair", "elem"] = "batch"
    """The unit that shares its random draws: batch, a micro-batch, so that the draws depend on how
    a step is divided; pair, two samples; elem, one sample."""
    mean: Rgb = (0.485, 0.456, 0.406)
    """Mean of each channel, for values from 0 to 1; subtracted, and the colour of pixels that
    geometric operations leave empty."""
    std: Rgb = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, for values from 0 to 1; divided by."""
    test_crop_fraction: float = Field(default=0.875, gt=0, le=1)
    """View side / resized shorter side in evaluation; 1 keeps the whole shorter side."""
    test_interpolation: Interpolation = "bicubic"
    """Filter of the resize in evaluation."""

    @model_validator(mode="after")
    def _check_fields(self) -> SupervisedViewsConfig:
        if self.augment not in ("none", "three_augment"):
            parse_rand_augment(self.augment)
        check_range("crop_scale", self.crop_scale, 1.0)
        check_range("erase_area", self.erase_area, 1.0)
        if self.cutmix_minmax is not None:
            check_range("cutmix_minmax", self.cutmix_minmax, 1.0)
        check_range("crop_ratio", self.crop_ratio, None)
        check_range("erase_aspect", self.erase_aspect, None)
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0 in every channel, but is {list(self.std)}")
        if self.crop_border == "reflect" and self.crop_padding >= self.image_px:
            raise ValueError(
                f"crop_padding must be below image_px ({self.image_px}) to mirror the image, but "
                f"is {self.crop_padding}"
            )
        return self

    @property
    def mixing(self) -> Mixing:
        """The parameters of mixup and CutMix."""
        return Mixing(
            mixup=self.mixup,
            cutmix=self.cutmix,
            cutmix_minmax=self.cutmix_minmax,
            probability=self.mix_probability,
            switch_probability=self.mix_switch_probability,
            mode=self.mix_mode,
        )

    @property
    def erasing(self) -> Erasing:
        """The parameters of random erasing."""
        return Erasing(
            probability=self.erase_probability,
            mode=self.erase_mode,
            count=self.erase_count,
            area=self.erase_area,
            aspect=self.erase_aspect,
        )

    def augmentation(self) -> Augmentation:
        """Return the policy that `augment` describes."""
        if self.augment == "none":
            return ColorJitter(self.color_jitter)
        if self.augment == "three_augment":
            return ThreeAugment(self.color_jitter)
        red, green, blue = (min(255, round(255 * mean)) for mean in self.mean)
        settings = parse_rand_augment(self.augment)
        return RandAugment(settings, self.interpolation, (red, green, blue))

    def build(self, split: Split) -> Transform:
        """Return the random training view, or the deterministic evaluation view."""
        if split == "train":
            return SupervisedView(self)
        return EvaluationView(
            self.image_px, self.test_crop_fraction, self.test_interpolation, self.mean, self.std
        )

    def check(self, dataset: Dataset, split: Split, plan: StepPlan | None) -> None:
        """Check that the records are images, and that every micro-batch has two images to mix.

        Raises:
            UserError: The records are text, or a micro-batch has a single image, which would not
                be mixed.
        """
        check_images(self, dataset)
        if plan is None or not self.mixing.on:
            return
        parts = plan.world_size * plan.accumulate
        if plan.batch_size < 2 * parts:
            raise UserError(
                f"train.batch_size must be at least 2 x ranks x train.accumulate (2 x {parts}) "
                f"where views.mixup or views.cutmix mixes the images of a micro-batch, but is "
                f"{plan.batch_size}; raise it, lower train.accumulate, or set both to 0"
            )


@final
class SupervisedView(Transform):
    """Crop and augmentation on the CPU; flip, erasing and mixing on the device.

    The published order is to flip before augmenting. The distribution is nearly the same, since
    operations to the left and to the right have the same probability. The only difference is the
    vertical shear, which fixes the left edge, and here the right edge of a flipped image.
    """

    def __init__(self, config: SupervisedViewsConfig) -> None:
        """Keep the config."""
        self.config = config
        self._augmentation = config.augmentation()
        self._mixing, self._erasing = config.mixing, config.erasing

    def sample(self, record: ImageRecord, key: int) -> Sample:
        """Decode, crop and augment one image.

        Returns:
            ``image`` uint8 (3, image_px, image_px), and ``label`` int64 () if there is one.

        Raises:
            UnreadableSample: The image cannot be decoded.
            UserError: Images are mixed, and this one has no label.
        """
        if record.label is None and self._mixing.on:
            raise UserError(
                f"views.mixup and views.cutmix mix labels, but {record.name} has none; set both to "
                "0, or use data with labels"
            )
        image = OpenedImage(record)
        stream = Stream(key)
        cropped = self._resized if self.config.crop == "resized" else self._padded
        view = apply(
            cropped(image, key, stream), self._augmentation.draw(Stream(fold(key, "augment")))
        )
        return sample_of(view, record.label)

    def _resized(self, image: OpenedImage, key: int, stream: Stream) -> npt.NDArray[np.uint8]:
        config, px = self.config, self.config.image_px
        box = random_box(image.height, image.width, config.crop_scale, config.crop_ratio, stream)
        return resize(image.crop(box, px, px), px, px, self._interpolation(key))

    def _padded(self, image: OpenedImage, key: int, stream: Stream) -> npt.NDArray[np.uint8]:
        px, border = self.config.image_px, self.config.crop_padding
        pixels = image.crop(not_too_long(image.height, image.width))
        shorter = min(pixels.shape[:2])
        height, width = (px * side // shorter for side in pixels.shape[:2])
        pixels = resize(pixels, height, width, self._interpolation(key))
        sides = ((0, 0), (border, border), (border, border))
        mirror = self.config.crop_border == "reflect"
        padded = np.pad(pixels, sides, mode="reflect") if mirror else np.pad(pixels, sides)
        top = stream.integer(height + 2 * border - px + 1)
        left = stream.integer(width + 2 * border - px + 1)
        return np.ascontiguousarray(padded[:, top : top + px, left : left + px])

    def _interpolation(self, key: int) -> Interpolation:
        chosen = self.config.interpolation
        if chosen != "random":
            return chosen
        names: tuple[Interpolation, ...] = ("bicubic", "bilinear")
        return Stream(fold(key, "interpolation")).choice(names)

    def batch(self, batch: Batch) -> Batch:
        """Flip, normalise, erase and mix, by draws from the samples' keys.

        Returns:
            The batch with ``image`` float32 and, if images are mixed, with ``mixed_label`` int64
            (batch,) and ``share`` float32 (batch,), the weight of each sample's own label.
        """
        config, key = self.config, batch["key"]
        images: Tensor = flip(batch["image"], key, config.flip_probability)
        images = erase(normalise(images, config.mean, config.std), key, self._erasing)
        return mix({**batch, "image": images}, self._mixing)

    def example(self, size: int, device: torch.device) -> Batch:
        """Return a batch of `size` views with arbitrary values."""
        batch = example(size, self.config.image_px, device)
        if not self._mixing.on:
            return batch
        share = torch.ones(size, dtype=torch.float32, device=device)
        return {**batch, "mixed_label": batch["label"].clone(), "share": share}
