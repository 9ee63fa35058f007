"""Augmentation policies of training images: RandAugment, 3-Augment and colour jitter.

A policy draws operations as a pure function of a `Stream`; `quadriga.data.views.operations.apply`
applies them.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

from quadriga.data.views.operations import Drawn, Filter
from quadriga.randomness import Stream

FilterChoice = Literal["bicubic", "bilinear", "random"]
Fill = tuple[int, int, int]
_FILTERS = {"bicubic": Filter.BICUBIC, "bilinear": Filter.BILINEAR}
_LEVEL_10 = 10.0


class Augmentation(ABC):
    """A policy that draws the operations for an image."""

    @abstractmethod
    def draw(self, stream: Stream) -> list[Drawn]:
        """Draw the operations for one image, in their order."""


@dataclass(frozen=True)
class RandAugmentSettings:
    """The settings in a string such as ``rand-m9-mstd0.5-inc1``."""

    magnitude: float = 10.0
    """m: strength of the operations; 10 is full strength."""
    operations: int = 2
    """n: number of operations that are drawn for an image."""
    deviation: float = 0.0
    """mstd: standard deviation of the magnitude; infinite (above 100 in the string) for a magnitude
    that is uniform from 0 to `magnitude`."""
    greatest: float = _LEVEL_10
    """mmax: upper bound to which magnitudes are clipped."""
    probability: float = 0.5
    """p: probability that an operation that was drawn is applied."""
    increasing: bool = False
    """inc: whether the strength of every operation increases with the magnitude."""
    weighted: bool = False
    """w0: whether geometric operations are drawn more often, and no operation twice."""


def parse_rand_augment(text: str) -> RandAugmentSettings:
    """Parse a string in the syntax of timm's RandAugment.

    Args:
        text: ``rand``, followed by parts in any order: ``m9`` (default 10), ``n2``, ``mstd0.5``,
            ``mmax10``, ``p0.5``, ``inc1``, ``w0``.

    Raises:
        ValueError: A part is unknown, repeated or out of range; the message names it.
    """
    head, *parts = text.split("-")
    if head != "rand":
        raise ValueError(
            "augment must be none, three_augment or a string such as rand-m9-mstd0.5-inc1, "
            f"but is {text!r}"
        )
    values: dict[str, float] = {}
    for part in parts:
        found = re.fullmatch(r"(mstd|mmax|inc|m|n|p|w)(\d+(?:\.\d*)?|\.\d+|inf)", part)
        if found is None:
            raise ValueError(
                f"augment must have parts m, n, p, w, mstd, mmax and inc with a number each, as in "
                f"rand-m9-mstd0.5-inc1, but {text!r} has {part!r}"
            )
        name, value = found[1], float(found[2])
        if name in values:
            raise ValueError(f"augment must say {name} once, but is {text!r}")
        _check_part(name, value, part, text)
        values[name] = value
    deviation = values.get("mstd", 0.0)
    return RandAugmentSettings(
        magnitude=values.get("m", _LEVEL_10),
        operations=int(values.get("n", 2)),
        deviation=math.inf if deviation > 100 else deviation,
        greatest=values.get("mmax", _LEVEL_10),
        probability=values.get("p", 0.5),
        increasing=values.get("inc", 0) > 0,
        weighted="w" in values,
    )


_RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "m": (math.isfinite, "a magnitude from 0 on"),
    "n": (lambda value: value in range(1, 14), "a whole number from 1 to 13"),
    "p": (lambda value: value <= 1, "a probability from 0 to 1"),
    "w": (lambda value: value == 0, "0, the only set of weights there is"),
    "mmax": (lambda value: 0 < value < math.inf, "a magnitude above 0"),
    "inc": (lambda value: value in (0, 1), "0 or 1"),
}


def _check_part(name: str, value: float, part: str, text: str) -> None:
    is_right, rule = _RULES.get(name, (lambda _: True, ""))
    if not is_right(value):
        raise ValueError(f"augment must have in {name} {rule}, but {text!r} has {part!r}")


_SIGNED = {
    "rotate": 30.0,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 0.45,
    "translate_y": 0.45,
}
"""Operations with a random sign -> amount at magnitude 10."""
_BLENDS = ("colour", "contrast", "brightness", "sharpness")

CHOICES: dict[str, float] = {
    "auto_contrast": 0.025,
    "equalize": 0.005,
    "invert": 0.0,
    "rotate": 0.3,
    "posterize": 0.0,
    "solarize": 0.005,
    "solarize_add": 0.005,
    "colour": 0.025,
    "contrast": 0.005,
    "brightness": 0.005,
    "sharpness": 0.025,
    "shear_x": 0.2,
    "shear_y": 0.2,
    "translate_x": 0.1,
    "translate_y": 0.1,
}
"""The 15 operations of RandAugment -> weight under ``w0``."""
_NAMES = tuple(CHOICES)


@final
class RandAugment(Augmentation):
    """RandAugment (Cubuk et al., arXiv:1909.13719) with the magnitudes of the DeiT recipes."""

    def __init__(
        self, settings: RandAugmentSettings, interpolation: FilterChoice, fill: Fill
    ) -> None:
        """Keep the settings, and the filter and the fill colour of geometric operations."""
        self._settings = settings
        self._interpolation = interpolation
        self._fill = fill

    def draw(self, stream: Stream) -> list[Drawn]:
        """Draw the operations for one image, in their order."""
        settings = self._settings
        if settings.weighted:
            names = _weighted_names(settings.operations, stream)
        else:
            names = [stream.choice(_NAMES) for _ in range(settings.operations)]
        drawn = []
        for name in names:
            if stream.uniform() >= settings.probability:
                continue
            amount = amount_of(name, self._magnitude(stream) / _LEVEL_10, settings, stream)
            kind = _filter(self._interpolation, stream) if name in _SIGNED else Filter.BICUBIC
            drawn.append(Drawn(name, amount, kind, self._fill))
        return drawn

    def _magnitude(self, stream: Stream) -> float:
        settings = self._settings
        magnitude = settings.magnitude
        if math.isinf(settings.deviation):
            magnitude = stream.uniform(0.0, magnitude)
        elif settings.deviation > 0:
            magnitude = stream.normal(magnitude, settings.deviation)
        return min(settings.greatest, max(0.0, magnitude))


def amount_of(name: str, level: float, settings: RandAugmentSettings, stream: Stream) -> float:
    """Return the amount of an operation (see `OPERATIONS`) at a magnitude.

    Args:
        name: The operation.
        level: The magnitude / 10.
        settings: Say whether the strength of all operations increases with the magnitude.
        stream: Draws the signs.
    """
    if name in _SIGNED:
        return _either_sign(level * _SIGNED[name], stream)
    if name in _BLENDS:
        if settings.increasing:
            return max(0.1, 1.0 + _either_sign(0.9 * level, stream))
        return 0.1 + 1.8 * level
    if name == "posterize":
        return 4 - int(4 * level) if settings.increasing else int(4 * level)
    if name == "solarize":
        return 256 - int(256 * level) if settings.increasing else int(256 * level)
    if name == "solarize_add":
        return min(128, int(110 * level))
    return 0.0


@final
class ThreeAugment(Augmentation):
    """3-Augment (Touvron et al., arXiv:2204.07118): grey, solarise or blur; then colour jitter."""

    def __init__(self, jitter: float) -> None:
        """Use `jitter` as the strength of `ColorJitter`."""
        self._jitter = ColorJitter(jitter)

    def draw(self, stream: Stream) -> list[Drawn]:
        """Draw the operations for one image, in their order."""
        amounts = {"grey": 0.0, "solarize": 128.0, "blur": stream.uniform(0.1, 2.0)}
        name = stream.choice(tuple(amounts))
        return [Drawn(name, amounts[name]), *self._jitter.draw(stream)]


@final
class ColorJitter(Augmentation):
    """Changes brightness, contrast and saturation by random factors, in a random order."""

    def __init__(self, strength: float) -> None:
        """Draw factors from ``[max(0, 1 - strength), 1 + strength]``; 0 changes nothing."""
        self._range = (max(0.0, 1.0 - strength), 1.0 + strength)

    def draw(self, stream: Stream) -> list[Drawn]:
        """Draw the operations for one image, in their order."""
        low, high = self._range
        if low == high:
            return []
        left = ["brightness", "contrast", "colour"]
        names = [left.pop(stream.integer(len(left))) for _ in range(len(left))]
        return [Drawn(name, stream.uniform(low, high)) for name in names]


def _filter(interpolation: FilterChoice, stream: Stream) -> Filter:
    if interpolation == "random":
        return stream.choice((Filter.BICUBIC, Filter.BILINEAR))
    return _FILTERS[interpolation]


def _either_sign(value: float, stream: Stream) -> float:
    return value if stream.uniform() < 0.5 else -value


def _weighted_names(count: int, stream: Stream) -> Sequence[str]:
    """Draw `count` names without replacement, with probabilities proportional to their weights."""
    left = {name: weight for name, weight in CHOICES.items() if weight > 0}
    names = []
    for _ in range(count):
        ends = list(itertools.accumulate(left.values()))
        place = bisect.bisect_right(ends, stream.uniform(0.0, ends[-1]))
        names.append(list(left)[min(place, len(ends) - 1)])
        del left[names[-1]]
    return names
