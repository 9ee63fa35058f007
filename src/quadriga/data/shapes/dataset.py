"""Captioned shapes: procedural pictures with labels, captions, questions and clips.

Sample `i` is a pure function of (seed of the data set, split, `i`); nothing is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from quadriga import randomness
from quadriga.contracts import Dataset, DatasetConfig, Split
from quadriga.data.images.record import ImageRecord
from quadriga.data.shapes.language import QuestionAnswer, captions, motion_caption, questions
from quadriga.data.shapes.render import render
from quadriga.data.shapes.scene import (
    CLASS_COUNT,
    COLORS,
    MAX_OBJECTS,
    MOTIONS,
    SHAPES,
    Scene,
    balanced,
    sample_scene,
    set_in_motion,
)


@final
class ShapesConfig(DatasetConfig):
    """Pictures of coloured shapes, drawn when they are read."""

    image_px: int = Field(default=64, ge=32, le=1024)
    """Side of the square images; below 64 the textures of small objects are hard to see."""
    count: int = Field(default=50_000, ge=1, le=2**40)
    """Number of training scenes."""
    test_count: int = Field(default=10_000, ge=1, le=2**40)
    """Number of test scenes."""
    max_objects: int = Field(default=4, ge=1, le=MAX_OBJECTS)
    """Largest number of objects in a scene; each number from 1 on is equally likely."""
    label: Literal["shape", "color", "shape_color"] = "shape"
    """The attribute of the main (largest) object that is the class; the pictures do not depend on
    it."""
    seed: int = Field(0, ge=-(2**63), le=2**63 - 1)
    """Seed of the data set, independent of the run's seed: every run has the same pictures."""

    def build(self, split: Split) -> ShapesDataset:
        """Return one split; the two splits share no scene."""
        return ShapesDataset(self, split)


@final
@dataclass(frozen=True, eq=False)
class Clip:
    """A short moving picture."""

    frames: npt.NDArray[np.uint8]
    """uint8 RGB pixels, (frames, height, width, 3)."""
    label: int
    """Direction of the main object, as a position in `MOTION_CLASSES`."""
    caption: str
    """A sentence with each object and its direction."""


MOTION_CLASSES = tuple(MOTIONS)
"""Class names of clips in the order of their labels."""


@final
class ShapesDataset(Dataset):
    """The scenes of one split, with their pictures, captions, questions and clips."""

    def __init__(self, config: ShapesConfig, split: Split) -> None:
        """Keep the config; scenes are drawn when they are read."""
        self._config = config
        self._split = split
        self._count = config.count if split == "train" else config.test_count
        self._key = randomness.fold(config.seed, "shapes", split)
        self.classes = _class_names(config.label)

    def __len__(self) -> int:
        """Return the number of scenes of the split."""
        return self._count

    def name(self, index: int) -> str:
        """Return the name of scene `index`, for example ``shapes train 17``."""
        return f"shapes {self._split} {index}"

    def scene(self, index: int) -> Scene:
        """Return scene `index`.

        Raises:
            IndexError: The split has no such scene.
        """
        return self._scene(index, self._main_class(index))

    def read(self, index: int) -> ImageRecord:
        """Draw scene `index`: uint8 (image_px, image_px, 3), with its label."""
        main_class = self._main_class(index)
        pixels = render(self._scene(index, main_class), self._config.image_px)
        return ImageRecord(pixels, self._label(main_class), self.name(index))

    def label(self, index: int) -> int:
        """Return the label of scene `index`, without drawing it.

        Any 64 consecutive scenes that start at a multiple of 64 have every class equally often.
        """
        return self._label(self._main_class(index))

    def labels(self) -> npt.NDArray[np.int64]:
        """Return int64 (scenes,): the label of each scene, without drawing them."""
        return np.array([self.label(index) for index in range(len(self))], np.int64)

    def captions(self, index: int) -> tuple[str, ...]:
        """Return several captions of scene `index` (`quadriga.data.shapes.language.captions`)."""
        return captions(self.scene(index), self._key_of("captions", index))

    def questions(self, index: int) -> list[QuestionAnswer]:
        """Return questions about scene `index` with their answers."""
        return questions(self.scene(index), self._key_of("questions", index))

    def clip(self, index: int, frames: int) -> Clip:
        """Return a clip in which the first three objects of a scene move on parallel lines.

        Args:
            index: Index of the scene.
            frames: Number of frames, at least 2; the length of the path does not depend on it.

        Raises:
            ValueError: There are fewer than 2 frames.
        """
        if frames < 2:
            raise ValueError(f"frames must be at least 2, but is {frames}")
        label = balanced(index, len(MOTIONS), randomness.fold(self._key, "motion"))
        key = self._key_of("clip", index)
        moving = set_in_motion(self.scene(index), key, MOTION_CLASSES[label])
        times = [frame / (frames - 1) for frame in range(frames)]
        pixels = np.stack([render(moving.at(time), self._config.image_px) for time in times])
        return Clip(pixels, label, motion_caption(moving, randomness.fold(key, "caption")))

    def _main_class(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise IndexError(f"scene {index} of {self._count}")
        return balanced(index, CLASS_COUNT, randomness.fold(self._key, "main"))

    def _scene(self, index: int, main_class: int) -> Scene:
        return sample_scene(self._key_of("scene", index), main_class, self._config.max_objects)

    def _label(self, main_class: int) -> int:
        shape, color = divmod(main_class, len(COLORS))
        return {"shape": shape, "color": color, "shape_color": main_class}[self._config.label]

    def _key_of(self, purpose: str, index: int) -> int:
        return randomness.fold(self._key, purpose, index)


def _class_names(label: str) -> tuple[str, ...]:
    if label == "shape":
        return SHAPES
    if label == "color":
        return tuple(COLORS)
    return tuple(f"{color} {shape}" for shape in SHAPES for color in COLORS)
