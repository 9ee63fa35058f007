"""Scenes of coloured shapes: their vocabulary, and random scenes as pure functions of a key.

Objects are in distinct cells of a 3 x 3 grid, and the disc that encloses an object is inside its
cell, so objects never overlap. The first object is the main one: it is strictly larger than all
others, so that the picture alone determines the main object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quadriga import randomness

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (224, 43, 48),
    "green": (38, 158, 70),
    "blue": (44, 92, 222),
    "yellow": (246, 206, 46),
    "purple": (138, 70, 190),
    "orange": (246, 132, 28),
    "cyan": (44, 192, 212),
    "pink": (246, 134, 192),
}
"""Name of each colour and its sRGB value, 0 to 255."""

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
TEXTURES = ("solid", "striped", "dotted", "checkered")

SIZES: dict[str, float] = {"small": 0.078, "medium": 0.110, "large": 0.148}
"""Name of each size and the radius of the enclosing disc, in image widths."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (244, 244, 240),
    "grey": (128, 130, 134),
    "black": (24, 25, 28),
}
"""Name of each background and its sRGB value, 0 to 255."""

POSITIONS = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
"""Name of each cell of the grid, by row and column."""

MOTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
"""Name of each direction of motion and its unit vector (x to the right, y down)."""

MAX_OBJECTS = 9
CLASS_COUNT = len(SHAPES) * len(COLORS)
"""Number of combinations of a shape and a colour."""

_CELL = 1 / 3
_MARGIN = 0.012
_TILT_DEGREES = 10.0
_TRAVEL = 0.5


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One shape of a scene; lengths are in image widths, from the top left corner."""

    shape: str
    color: str
    size: str
    texture: str
    row: int
    column: int
    x: float
    y: float
    radius: float
    """Radius of the disc that encloses the shape."""
    tilt: float
    """Clockwise rotation in radians."""

    @property
    def position(self) -> str:
        """Name of the object's cell."""
        return POSITIONS[self.row][self.column]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Objects on a background; `objects[0]` is the main one, larger than all others."""

    objects: tuple[SceneObject, ...]
    background: str
    light: float
    """Direction in radians in which the background grows slightly brighter."""


@dataclass(frozen=True, kw_only=True)
class MovingScene:
    """The objects of a scene, each moving along its own row or column."""

    scene: Scene
    motions: tuple[str, ...]
    """Direction of each object."""

    def at(self, time: float) -> Scene:
        """Return the scene at a time from 0 (start) to 1 (end)."""
        moved = []
        for item, motion in zip(self.scene.objects, self.motions, strict=True):
            x, y = MOTIONS[motion]
            distance = _TRAVEL * (time - 0.5)
            moved.append(replace(item, x=item.x + x * distance, y=item.y + y * distance))
        return replace(self.scene, objects=tuple(moved))


def balanced(index: int, count: int, key: int) -> int:
    """Draw one of `count` classes for an index; in blocks of `count` indices each occurs once.

    Args:
        index: Index of the sample, from 0.
        count: Number of classes.
        key: Key of the draw.
    """
    block, place = divmod(index, count)
    block_key = randomness.fold(key, "block", block)
    return int(randomness.shuffled(np.array([place]), count, block_key)[0])


def sample_scene(key: int, main_class: int, max_objects: int) -> Scene:
    """Draw a scene.

    Args:
        key: The scene's key.
        main_class: Shape and colour of the main object: ``shape * len(COLORS) + color``, by
            their positions in `SHAPES` and `COLORS`.
        max_objects: Largest number of objects, 1 to 9; each number from 1 on is equally likely.
    """
    stream = randomness.Stream(key)
    count = 1 + stream.integer(max_objects)
    cells = [int(c) for c in randomness.shuffled(np.arange(count), 9, randomness.fold(key, "cell"))]
    shape, color = divmod(main_class, len(COLORS))
    names = tuple(SIZES)
    # With other objects the main one is medium or large, since the others must be smaller.
    rank = stream.integer(len(names)) if count == 1 else 1 + stream.integer(len(names) - 1)
    objects = [_place(stream, cells[0], SHAPES[shape], tuple(COLORS)[color], names[rank])]
    for cell in cells[1:]:
        shape_name = _often_repeated(stream, SHAPES, [item.shape for item in objects])
        color_name = _often_repeated(stream, tuple(COLORS), [item.color for item in objects])
        size = names[stream.integer(rank)]
        objects.append(_place(stream, cell, shape_name, color_name, size))
    return Scene(
        objects=tuple(objects),
        background=stream.choice(tuple(BACKGROUNDS)),
        light=stream.uniform(0.0, 2.0 * np.pi),
    )


def set_in_motion(scene: Scene, key: int, motion: str) -> MovingScene:
    """Return a scene in which the first three objects move, each along its own row or column.

    Args:
        scene: The objects and the background.
        key: Key of the rows or columns and of the other objects' directions.
        motion: Direction of the main object; the others move along the same axis, either way.
    """
    stream = randomness.Stream(key)
    objects = scene.objects[:3]
    lanes = randomness.shuffled(np.arange(len(objects)), 3, randomness.fold(key, "lane"))
    horizontal = MOTIONS[motion][0] != 0
    ways = [name for name, (x, _) in MOTIONS.items() if (x != 0) == horizontal]
    placed = []
    for item, lane in zip(objects, lanes, strict=True):
        row, column = (int(lane), 1) if horizontal else (1, int(lane))
        across = (lane + 0.5) * _CELL
        x, y = (0.5, across) if horizontal else (across, 0.5)
        placed.append(replace(item, row=row, column=column, x=x, y=y))
    motions = (motion, *(stream.choice(ways) for _ in objects[1:]))
    return MovingScene(scene=replace(scene, objects=tuple(placed)), motions=motions)


def _often_repeated(stream: randomness.Stream, names: Sequence[str], used: Sequence[str]) -> str:
    # Without repetition nearly every count would be one and nearly every object unique.
    return stream.choice(used if stream.uniform() < 0.3 else names)


def _place(stream: randomness.Stream, cell: int, shape: str, color: str, size: str) -> SceneObject:
    row, column = divmod(cell, 3)
    radius = SIZES[size] * stream.uniform(0.94, 1.0)
    play = _CELL / 2 - radius - _MARGIN
    tilt = np.deg2rad(stream.uniform(-_TILT_DEGREES, _TILT_DEGREES))
    return SceneObject(
        shape=shape,
        color=color,
        size=size,
        texture=stream.choice(TEXTURES),
        row=row,
        column=column,
        x=(column + 0.5) * _CELL + stream.uniform(-play, play),
        y=(row + 0.5) * _CELL + stream.uniform(-play, play),
        radius=radius,
        tilt=float(tilt),
    )
