"""Captions of a scene of shapes, and questions about it with their answers.

Sentences are lower case without a final full stop. Every caption is true of its scene, and every
question has exactly one right answer, which the picture alone determines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from quadriga import randomness
from quadriga.data.shapes.scene import COLORS, SHAPES, MovingScene, Scene, SceneObject

_PLACES = {
    "top left": "at the top left",
    "top": "at the top",
    "top right": "at the top right",
    "left": "on the left",
    "centre": "in the centre",
    "right": "on the right",
    "bottom left": "at the bottom left",
    "bottom": "at the bottom",
    "bottom right": "at the bottom right",
}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_HEADINGS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}


class QuestionAnswer(NamedTuple):
    """A question about a scene and its only right answer."""

    question: str
    answer: str


def captions(scene: Scene, key: int) -> tuple[str, ...]:
    """Return several captions of a scene.

    Args:
        scene: The scene.
        key: Key of the choice of templates and of the order of the objects.

    Returns:
        A full description (size, texture, colour, shape and place of every object, and the
        background), a short one (colour and shape), the number of objects, and, if two different
        objects are in different rows or columns, their relative position.
    """
    stream = randomness.Stream(key)
    objects = _reordered(scene.objects, stream)
    full = _listed([f"{_article(_full(item))} {_PLACES[item.position]}" for item in objects])
    background = scene.background
    first = stream.choice(
        (
            f"{full}, on a {background} background",
            f"on a {background} background, {full}",
            f"a picture of {full}, on a {background} background",
            f"a {background} background with {full}",
        )
    )
    short = _listed([_article(_short(item)) for item in objects])
    second = stream.choice((short, f"a picture of {short}", f"this image shows {short}"))
    sentences = [first, second, _counted(scene)]
    relations = list(_relations(objects))
    if relations:
        subject, relation, reference = stream.choice(relations)
        sentences.append(
            f"{_article(_short(subject))} {relation} {_article(_short(reference))}",
        )
    return tuple(sentences)


def motion_caption(moving: MovingScene, key: int) -> str:
    """Return a caption of a clip: each object and its direction, in one sentence.

    Args:
        moving: The objects and their directions.
        key: Key of the choice of the template.
    """
    verb = randomness.Stream(key).choice(("moves", "slides", "travels"))
    pairs = zip(moving.scene.objects, moving.motions, strict=True)
    return _listed([f"{_article(_full(item))} {verb} {_HEADINGS[way]}" for item, way in pairs])


def questions(scene: Scene, key: int) -> list[QuestionAnswer]:
    """Return one question of each type that has a unique answer in the scene.

    Args:
        scene: The scene.
        key: Key of the choice of objects, of templates and of yes and no.

    Returns:
        Questions and answers. The answers to "is there" and "is the ... above" questions are yes
        and no with equal probability in every scene.
    """
    stream = randomness.Stream(key)
    asked = [*_about_one(scene, stream), *_about_numbers(scene, stream)]
    asked += [_about_presence(scene, stream), *_about_relations(scene, stream)]
    asked.append(QuestionAnswer("what colour is the background?", scene.background))
    return asked


def _about_one(scene: Scene, stream: randomness.Stream) -> Iterator[QuestionAnswer]:
    """Yield questions about attributes of objects that the question identifies uniquely."""
    shapes = Counter(item.shape for item in scene.objects)
    colors = Counter(item.color for item in scene.objects)
    pairs = Counter(_short(item) for item in scene.objects)
    by_shape = [item for item in scene.objects if shapes[item.shape] == 1]
    by_color = [item for item in scene.objects if colors[item.color] == 1]
    by_pair = [item for item in scene.objects if pairs[_short(item)] == 1]
    if by_shape:
        item = stream.choice(by_shape)
        yield QuestionAnswer(f"what colour is the {item.shape}?", item.color)
        item = stream.choice(by_shape)
        texture = f"is the {item.shape} solid, striped, dotted or checkered?"
        yield QuestionAnswer(texture, item.texture)
    if by_color:
        item = stream.choice(by_color)
        yield QuestionAnswer(f"what shape is the {item.color} object?", item.shape)
    if by_pair:
        item = stream.choice(by_pair)
        yield QuestionAnswer(f"where is the {_short(item)}?", item.position)
        item = stream.choice(by_pair)
        size = f"is the {_short(item)} small, medium or large?"
        yield QuestionAnswer(size, item.size)
    by_place = [item for item in scene.objects if _alone_in_place(item, scene)]
    if by_place:
        item = stream.choice(by_place)
        yield QuestionAnswer(f"what is {_PLACES[item.position]}?", _short(item))
    if len(scene.objects) > 1:
        main = scene.objects[0]
        yield QuestionAnswer("what is the largest object?", _short(main))


def _alone_in_place(item: SceneObject, scene: Scene) -> bool:
    """Return whether the name of the object's place identifies it uniquely.

    "On the left" can mean the whole left column, "at the top" the whole top row.
    """
    others = [other for other in scene.objects if other is not item]
    if item.position in ("left", "right"):
        return all(other.column != item.column for other in others)
    if item.position in ("top", "bottom"):
        return all(other.row != item.row for other in others)
    return True


def _about_numbers(scene: Scene, stream: randomness.Stream) -> Iterator[QuestionAnswer]:
    """Yield questions about the number of objects: in all, of a shape, of a colour."""
    yield QuestionAnswer("how many objects are there?", _NUMBERS[len(scene.objects)])
    shape = stream.choice([*(item.shape for item in scene.objects), stream.choice(SHAPES)])
    count = sum(item.shape == shape for item in scene.objects)
    yield QuestionAnswer(f"how many {_plural(shape)} are there?", _NUMBERS[count])
    color = stream.choice([*(item.color for item in scene.objects), stream.choice(tuple(COLORS))])
    count = sum(item.color == color for item in scene.objects)
    yield QuestionAnswer(f"how many {color} objects are there?", _NUMBERS[count])


def _about_presence(scene: Scene, stream: randomness.Stream) -> QuestionAnswer:
    """Return a question about the presence of a colour and shape; half the answers are yes."""
    present = {(item.color, item.shape) for item in scene.objects}
    if stream.uniform() < 0.5:
        item = stream.choice(scene.objects)
        return QuestionAnswer(f"is there {_article(_short(item))}?", "yes")
    absent = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in present]
    colors, shapes = {c for c, _ in present}, {s for _, s in present}
    # Half of the questions with the answer no name a colour or a shape of the scene, so that
    # recognising only one of the two is not enough.
    near = [(c, s) for c, s in absent if c in colors or s in shapes]
    color, shape = stream.choice(near if stream.uniform() < 0.5 else absent)
    return QuestionAnswer(f"is there {_article(f'{color} {shape}')}?", "no")


def _about_relations(scene: Scene, stream: randomness.Stream) -> Iterator[QuestionAnswer]:
    """Yield questions about the neighbour of an object and the relative position of two."""
    pairs = Counter(_short(item) for item in scene.objects)
    unique = [item for item in scene.objects if pairs[_short(item)] == 1]
    beside = list(_only_neighbours(scene, unique))
    if beside:
        neighbour, relation, reference = stream.choice(beside)
        question = f"what is {relation} the {_short(reference)}?"
        yield QuestionAnswer(question, _short(neighbour))
    relations = list(_relations(unique))
    if relations:
        subject, relation, reference = stream.choice(relations)
        true = stream.uniform() < 0.5
        first, second = (subject, reference) if true else (reference, subject)
        question = f"is the {_short(first)} {relation} the {_short(second)}?"
        yield QuestionAnswer(question, "yes" if true else "no")


def _relations(objects: Sequence[SceneObject]) -> Iterator[tuple[SceneObject, str, SceneObject]]:
    """Yield (object, relation, reference) of different objects in different rows or columns."""
    for first in objects:
        for second in objects:
            if _short(first) == _short(second):
                continue
            if first.column < second.column:
                yield first, "to the left of", second
                yield second, "to the right of", first
            if first.row < second.row:
                yield first, "above", second
                yield second, "below", first


def _only_neighbours(
    scene: Scene, unique: Sequence[SceneObject]
) -> Iterator[tuple[SceneObject, str, SceneObject]]:
    """Yield (object, relation, reference) where no other object has the relation.

    References that share their row or column with another object are left out: because of the
    jitter it is ambiguous whether that object is to the left, too.
    """
    for reference in unique:
        others = [item for item in scene.objects if item is not reference]
        columns = [(item.column - reference.column, item) for item in others]
        rows = [(item.row - reference.row, item) for item in others]
        for offsets, before, after in (
            (columns, "to the left of", "to the right of"),
            (rows, "above", "below"),
        ):
            first = [item for offset, item in offsets if offset < 0]
            last = [item for offset, item in offsets if offset > 0]
            if len(first) + len(last) == len(others):
                if len(first) == 1:
                    yield first[0], before, reference
                if len(last) == 1:
                    yield last[0], after, reference


def _counted(scene: Scene) -> str:
    """Return a caption with the number of objects in all and of each shape."""
    shapes = Counter(item.shape for item in scene.objects)
    total = len(scene.objects)
    parts = [_quantity(count, shape) for shape, count in shapes.items()]
    return f"{_quantity(total, 'object')}: {_listed(parts)}"


def _quantity(count: int, noun: str) -> str:
    return f"{_NUMBERS[count]} {noun if count == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def _full(item: SceneObject) -> str:
    return f"{item.size} {item.texture} {item.color} {item.shape}"


def _short(item: SceneObject) -> str:
    return f"{item.color} {item.shape}"


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _listed(parts: Sequence[str]) -> str:
    """Join words as in "a, b, and c"."""
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _reordered(objects: Sequence[SceneObject], stream: randomness.Stream) -> list[SceneObject]:
    """Return the objects in a random order."""
    left, order = list(objects), []
    while left:
        order.append(left.pop(stream.integer(len(left))))
    return order
