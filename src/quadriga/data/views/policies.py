"""The papers' augmentations of the views that self-supervised methods compare.

Every preset crops, mirrors, jitters the colours, makes grey, blurs and solarises, in this order.
What differs are the probabilities and the strengths, in some papers from view to view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from quadriga.config.base import Config, Number
from quadriga.data.images.decode import Box
from quadriga.randomness import Stream

Range = tuple[Number, Number]
Preset = Literal[
    "none", "simclr", "moco_v2", "moco_v3", "byol", "barlow_twins", "vicreg", "swav", "dino"
]
Blend = Literal["brightness", "contrast", "saturation"]
WIDEST = 4.0
"""Greatest standard deviation of a blur in pixels."""
BLENDS: tuple[Blend, ...] = ("brightness", "contrast", "saturation")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How one view is augmented after its crop."""

    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: Range = (0.1, 2.0)
    solarise_probability: float = 0.0


class PolicyChanges(Config):
    """What differs from the preset; a field that is null is that of the preset."""

    jitter_probability: float | None = Field(default=None, ge=0, le=1)
    """Probability that brightness, contrast, saturation and hue change, in a random order."""
    brightness: float | None = Field(default=None, ge=0, le=100)
    """The image is multiplied by a factor from max(0, 1 - brightness) to 1 + brightness."""
    contrast: float | None = Field(default=None, ge=0, le=100)
    """Likewise the distance of each value from the mean grey of the image."""
    saturation: float | None = Field(default=None, ge=0, le=100)
    """Likewise the distance of each pixel from its grey."""
    hue: float | None = Field(default=None, ge=0, le=0.5)
    """Largest rotation of the hue, in whole turns."""
    grey_probability: float | None = Field(default=None, ge=0, le=1)
    """Probability that the view becomes grey."""
    blur_probability: float | None = Field(default=None, ge=0, le=1)
    """Probability that the view is blurred by a Gaussian."""
    blur_sigma: Range | None = None
    """Smallest and largest standard deviation of the Gaussian in pixels."""
    solarise_probability: float | None = Field(default=None, ge=0, le=1)
    """Probability that the levels from 128 on are inverted."""

    @model_validator(mode="after")
    def _check_sigma(self) -> PolicyChanges:
        if self.blur_sigma is not None:
            low, high = self.blur_sigma
            if not 0 < low <= high <= WIDEST:
                raise ValueError(
                    f"blur_sigma must be two ascending numbers in (0, {WIDEST:g}], but is "
                    f"[{low:g},{high:g}]"
                )
        return self

    def of(self, policy: Policy) -> Policy:
        """Return `policy` with these changes."""
        return replace(policy, **{k: v for k, v in self if v is not None})


_STRONG = Policy(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
_BYOL = Policy(saturation=0.2)
_ASYMMETRIC = (
    replace(_BYOL, blur_probability=1.0),
    replace(_BYOL, blur_probability=0.1, solarise_probability=0.2),
    _BYOL,
)
_OFF = Policy(jitter_probability=0.0, grey_probability=0.0, blur_probability=0.0)

PRESETS: dict[Preset, tuple[Policy, Policy, Policy]] = {
    "none": (_OFF,) * 3,
    "simclr": (_STRONG,) * 3,
    "moco_v2": (Policy(),) * 3,
    "moco_v3": _ASYMMETRIC,
    "byol": _ASYMMETRIC,
    "barlow_twins": _ASYMMETRIC,
    "vicreg": (replace(_BYOL, solarise_probability=0.1),) * 3,
    "swav": (_STRONG,) * 3,
    "dino": _ASYMMETRIC,
}
"""Policies of the first large view, the other large views and the small ones.

Papers without small views: those of DINO's policy, or the paper's only one."""


class ViewDraws(NamedTuple):
    """All that was drawn for one view."""

    box: Box
    """The crop in pixels of the image."""
    flipped: bool = False
    """Whether it is mirrored left to right."""
    blends: tuple[tuple[Blend, float], ...] = ()
    """Colour changes and their factors, in their order."""
    hue: float = 0.0
    """Rotation of the hue in turns."""
    before_hue: int = 0
    """Number of colour changes that come before it."""
    grey: bool = False
    """Whether the view becomes grey."""
    sigma: float = 0.0
    """Standard deviation of the blur in pixels; 0 for none."""
    solarised: bool = False
    """Whether levels from 128 on are inverted."""

    def numbers(self) -> npt.NDArray[np.float32]:
        """Return float32 (`NUMBERS`,), from which a device makes the view."""
        kinds = [BLENDS.index(name) for name, _ in self.blends]
        factors = [factor for _, factor in self.blends]
        missing = len(BLENDS) - len(kinds)
        return np.array(
            [
                *self.box,
                self.flipped,
                *(kinds + missing * [0]),
                *(factors + missing * [1.0]),
                self.hue,
                self.before_hue,
                self.grey,
                self.sigma,
                self.solarised,
            ],
            np.float32,
        )

    @classmethod
    def of(cls, numbers: Sequence[float]) -> ViewDraws:
        """Return the draws that `numbers` was made of."""
        top, left, height, width = map(int, numbers[:4])
        pairs = zip(numbers[5:8], numbers[8:11], strict=True)
        hue, before_hue, grey, sigma, solarised = numbers[11:]
        return cls(
            Box(top, left, height, width),
            bool(numbers[4]),
            tuple((BLENDS[int(kind)], factor) for kind, factor in pairs if factor != 1),
            hue,
            int(before_hue),
            bool(grey),
            sigma,
            bool(solarised),
        )


NUMBERS = 16
"""Length of `ViewDraws.numbers`."""


def draw_view(policy: Policy, box: Box, flip_probability: float, stream: Stream) -> ViewDraws:
    """Draw how one view is augmented.

    Args:
        policy: The probabilities and strengths.
        box: The crop, drawn before.
        flip_probability: Probability that the view is mirrored.
        stream: Source of the draws.
    """
    flipped = stream.uniform() < flip_probability
    blends: list[tuple[Blend, float]] = []
    hue, before = 0.0, 0
    if stream.uniform() < policy.jitter_probability:
        left = [*BLENDS, "hue"]
        for _ in range(len(left)):
            name = left.pop(stream.integer(len(left)))
            strength = getattr(policy, name)
            if name == "hue":
                hue, before = stream.uniform(-strength, strength), len(blends)
            elif strength > 0:
                factor = stream.uniform(max(0.0, 1 - strength), 1 + strength)
                blends.append((name, factor))  # type: ignore[arg-type]
    return ViewDraws(
        box,
        flipped,
        tuple(blends),
        hue,
        before,
        stream.uniform() < policy.grey_probability,
        stream.uniform(*policy.blur_sigma) if stream.uniform() < policy.blur_probability else 0.0,
        stream.uniform() < policy.solarise_probability,
    )
