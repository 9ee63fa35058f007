"""Shapes among clutter: small grey pictures of ten shapes, drawn once when the data is opened.

A data set that needs no download, is learned within minutes on one core and is out of reach of a
classifier without features. Sample `i` is a pure function of (seed of the data set, split, `i`):
a smaller data set is the beginning of a larger one.

Drawing of many small grey pictures at once: a shape, distractor strokes and noise.

A shape is the set where a signed distance is not positive. The distance is in pixels, so that
``clip(1/2 - distance, 0, 1)`` is the share of a pixel that the shape covers, up to its corners.
"""

from __future__ import annotations

import functools
import math
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from quadriga.contracts import Dataset, DatasetConfig, Split
from quadriga.data.images.record import ImageRecord
from quadriga.randomness import fold, fold_numpy, uniform_rows

SHAPES = (
    "disc",
    "ring",
    "square",
    "frame",
    "diamond",
    "triangle up",
    "triangle down",
    "plus",
    "cross",
    "star",
)
"""Names of the shapes; each is its own mirror image, left to right."""

LARGEST_TILT = math.radians(14)
RADIUS = (0.19, 0.3)
"""Least and greatest radius of the circle that a shape lies in, in sides of the picture."""
CONTRAST = (0.75, 1.0)
"""How much brighter than the background a shape is, at least and at most."""
STROKE_CONTRAST = (0.3, 0.8)
"""How much brighter than the background a stroke is, at least and at most."""
GROUND = (0.05, 0.35)
"""Darkest and brightest background."""

Floats = npt.NDArray[np.floating[Any]]

_DRAWS_OF_SHAPE, _DRAWS_OF_STROKE = 6, 5
_AT_A_TIME = 512  # Pictures that are drawn at a time: what a processor's cache holds.


def draw(
    labels: npt.NDArray[np.int64],
    keys: npt.NDArray[np.int64],
    image_px: int,
    noise: float,
    strokes: int,
) -> npt.NDArray[np.uint8]:
    """Draw one picture per label.

    Args:
        labels: int64 (pictures,), positions in `SHAPES`.
        keys: int64 (pictures,), the random key of each picture.
        image_px: Side of the pictures in pixels.
        noise: Standard deviation of the Gaussian noise of a pixel; black is 0 and white 1.
        strokes: Number of straight strokes in each picture.

    Returns:
        uint8 (pictures, image_px, image_px). A picture depends on its own label and key alone.
    """
    slices = [slice(i, i + _AT_A_TIME) for i in range(0, len(labels), _AT_A_TIME)]
    return np.concatenate([_draw(labels[s], keys[s], image_px, noise, strokes) for s in slices])


def _draw(
    labels: npt.NDArray[np.int64],
    keys: npt.NDArray[np.int64],
    image_px: int,
    noise: float,
    strokes: int,
) -> npt.NDArray[np.uint8]:
    draws = uniforms(keys, "shape", _DRAWS_OF_SHAPE)
    # Strokes lie behind the shape, whose contrast is with the background.
    ground = (GROUND[0] + (GROUND[1] - GROUND[0]) * draws[:, 0])[:, None, None]
    pictures = np.broadcast_to(ground, (len(keys), image_px, image_px)).copy()
    coordinates = (np.arange(image_px, dtype=np.float32) + 0.5) / image_px
    lines = uniforms(keys, "strokes", strokes * _DRAWS_OF_STROKE)
    for line in np.split(lines, strokes, axis=1) if strokes else ():
        cover, contrast = _stroke(line, coordinates)
        pictures += contrast * cover
    for label in np.unique(labels):
        chosen = np.flatnonzero(labels == label)
        cover, contrast = _shape(int(label), draws[chosen], coordinates)
        pictures[chosen] += cover * (ground[chosen] + contrast - pictures[chosen])
    pictures += noise * normals(keys, "noise", image_px**2).reshape(pictures.shape)
    levels: npt.NDArray[np.uint8] = np.rint(255 * pictures.clip(0, 1)).astype(np.uint8)
    return levels


def _shape(number: int, draws: Floats, coordinates: Floats) -> tuple[Floats, Floats]:
    """Return the share of each pixel that the shapes cover, and their contrast (pictures, 1, 1)."""
    _, size, across, down, turn, strength = draws.T[:, :, None, None]
    radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * size
    x = coordinates[None, None, :] - (radius + (1 - 2 * radius) * across)
    y = coordinates[None, :, None] - (radius + (1 - 2 * radius) * down)
    tilt = LARGEST_TILT * (2 * turn - 1)
    cosine, sine = np.cos(tilt) / radius, np.sin(tilt) / radius
    away = distance(number, cosine * x + sine * y, cosine * y - sine * x) * radius
    cover = (0.5 - away * len(coordinates)).clip(0, 1)
    contrast = CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * strength
    return cover.astype(np.float32), contrast


def _stroke(draws: Floats, coordinates: Floats) -> tuple[Floats, Floats]:
    """Return the share of each pixel that straight strokes cover, and their contrast."""
    across, down, turn, length, strength = draws.T[:, :, None, None]
    x, y = coordinates[None, None, :] - across, coordinates[None, :, None] - down
    cosine, sine = np.cos(np.pi * turn), np.sin(np.pi * turn)
    half = 0.15 + 0.3 * length
    along = (np.abs(cosine * x + sine * y) - half).clip(0)
    aside = cosine * y - sine * x
    away = np.hypot(along, aside) * len(coordinates)
    return (1.25 - away).clip(0, 1).astype(np.float32), STROKE_CONTRAST[0] + (
        STROKE_CONTRAST[1] - STROKE_CONTRAST[0]
    ) * strength


def distance(number: int, x: Floats, y: Floats) -> Floats:
    """Return the signed distance from a shape in its radii; negative inside.

    Args:
        number: Position in `SHAPES`.
        x: Coordinates about the centre in radii, to the right.
        y: The same, down.
    """
    name = SHAPES[number]
    x = np.abs(x)  # Every shape is symmetric about the vertical axis.
    found: Floats
    if name in ("disc", "ring"):
        rho = np.hypot(x, y)
        found = rho - 0.9 if name == "disc" else np.abs(rho - 0.72) - 0.2
    elif name in ("square", "frame"):
        rho = np.maximum(x, np.abs(y))
        found = rho - 0.7 if name == "square" else np.abs(rho - 0.54) - 0.16
    elif name == "diamond":
        found = (x + np.abs(y) - 1) * math.sqrt(0.5)
    elif name in ("triangle up", "triangle down"):
        down = y if name == "triangle up" else -y
        found = np.maximum(math.sqrt(0.75) * x - 0.5 * down - 0.5, down - 0.5)
    elif name in ("plus", "cross"):
        if name == "cross":
            x, y = (x - y) * math.sqrt(0.5), (x + y) * math.sqrt(0.5)
        small, large = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
        found = np.maximum(small - 0.26, large - 0.92)
    else:
        found = _star(x, y)
    return found


def _star(x: Floats, y: Floats) -> Floats:
    """Return the signed distance from the lines of a star with five points, one of them up."""
    sector = 2 * math.pi / 5
    angle = np.arctan2(x, -y)
    angle = np.abs(angle - sector * np.rint(angle / sector))
    rho = np.hypot(x, y)
    # In the sector's coordinates, the edge leads from its point (1, 0) to the notch between two.
    notch = 0.42 * math.cos(sector / 2), 0.42 * math.sin(sector / 2)
    along, aside = rho * np.cos(angle), rho * np.sin(angle)
    length = math.hypot(1 - notch[0], notch[1])
    return (notch[1] * (along - 1) + (1 - notch[0]) * aside) / length


def uniforms(keys: npt.NDArray[np.int64], purpose: str, count: int) -> Floats:
    """Draw `count` uniforms from [0, 1) per key: float32 (keys, count)."""
    return uniform_rows(torch.from_numpy(keys), fold("clutter", purpose), count).numpy()


def normals(keys: npt.NDArray[np.int64], purpose: str, count: int) -> Floats:
    """Draw `count` standard normal values per key (Box and Muller, 1958): float32."""
    halves = (count + 1) // 2
    draws = uniforms(keys, purpose, 2 * halves)
    radius = np.sqrt(-2 * np.log(1 - draws[:, :halves]))
    angle = np.float32(2 * math.pi) * draws[:, halves:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]


@final
class ClutterConfig(DatasetConfig):
    """One of ten shapes, of any size, place and contrast, with strokes and noise about it."""

    image_px: int = Field(default=24, ge=16, le=256)
    """Side of the square pictures."""
    train_samples: int = Field(default=3000, ge=1, le=1_000_000)
    """Number of training pictures; the classes take turns."""
    test_samples: int = Field(default=2000, ge=1, le=1_000_000)
    """Number of test pictures."""
    noise: float = Field(default=0.2, ge=0, le=1e3)
    """Standard deviation of the Gaussian noise of a pixel; black is 0 and white 1."""
    strokes: int = Field(default=2, ge=0, le=100)
    """Number of straight strokes in a picture that have nothing to do with its class."""
    seed: int = Field(0, ge=-(2**63), le=2**63 - 1)
    """Seed of the data set, apart from the run's: the same pictures in every run."""

    def build(self, split: Split) -> ClutterDataset:
        """Draw one split."""
        return ClutterDataset(self, split)


@final
class ClutterDataset(Dataset):
    """The pictures of one split, in memory."""

    def __init__(self, config: ClutterConfig, split: Split) -> None:
        """Draw them, or take those that this process has drawn already."""
        self.classes = SHAPES
        self._split = split
        self._pictures = _drawn(config, split)

    def __len__(self) -> int:
        """Return the number of pictures of the split."""
        return len(self._pictures)

    def read(self, index: int) -> ImageRecord:
        """Return picture `index` as uint8 (image_px, image_px, 3), grey, with its label.

        The array is a view: nothing is copied, and it may not be written to.
        """
        return ImageRecord(self._pictures[index], index % len(SHAPES), self.name(index))

    def name(self, index: int) -> str:
        """Return for example ``clutter train 17``."""
        return f"clutter {self._split} {index}"

    def labels(self) -> npt.NDArray[np.int64]:
        """Return the class of each picture."""
        return np.arange(len(self)) % len(SHAPES)


@functools.lru_cache(maxsize=4)
def _drawn(config: ClutterConfig, split: Split) -> npt.NDArray[np.uint8]:
    """Return all pictures: read-only uint8 (pictures, image_px, image_px, 3)."""
    count = config.train_samples if split == "train" else config.test_samples
    index = np.arange(count)
    keys = fold_numpy(fold(config.seed, "clutter", split), index)
    grey = draw(index % len(SHAPES), keys, config.image_px, config.noise, config.strokes)
    # The channels are outermost in memory, as the views hand them on: no sample is copied.
    planes = np.ascontiguousarray(np.broadcast_to(grey[:, None], (count, 3, *grey.shape[1:])))
    planes.flags.writeable = False
    return planes.transpose(0, 2, 3, 1)
