"""Scenes and the data set: purity, balance, no overlap, and clips that go where they say."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import refuses
from quadriga.contracts import DatasetConfig
from quadriga.data.shapes.dataset import MOTION_CLASSES, ShapesConfig
from quadriga.data.shapes.scene import (
    CLASS_COUNT,
    COLORS,
    MOTIONS,
    SHAPES,
    balanced,
    sample_scene,
    set_in_motion,
)

keys = st.integers(0, 2**64 - 1)
classes = st.integers(0, CLASS_COUNT - 1)


def test_sample_is_a_pure_function_of_its_index():
    config = ShapesConfig(count=40, image_px=32)
    first, second = config.build("train"), config.build("train")
    forward = [first.read(i) for i in range(40)]
    for index in reversed(range(40)):
        again = second.read(index)
        np.testing.assert_array_equal(again.data, forward[index].data)
        assert again.label == forward[index].label
        assert second.captions(index) == first.captions(index)
        assert second.questions(index) == first.questions(index)


def test_splits_and_seeds_share_no_picture():
    data = [ShapesConfig(image_px=32, seed=s).build(p) for s in (0, 1) for p in ("train", "test")]
    pictures = [d.read(i).data.tobytes() for d in data for i in range(200)]
    assert len(set(pictures)) == 800


def test_scene_does_not_depend_on_counts_or_label():
    base = ShapesConfig(count=100).build("train")
    other = ShapesConfig(count=7, test_count=3, label="color").build("train")
    assert [base.scene(i) for i in range(7)] == [other.scene(i) for i in range(7)]


@pytest.mark.parametrize("label", ["shape", "color", "shape_color"])
def test_labels_name_the_main_object_and_are_balanced(label):
    data = ShapesConfig(count=128, label=label).build("test")
    for index in range(128):
        main = data.scene(index).objects[0]
        expected = {
            "shape": main.shape,
            "color": main.color,
            "shape_color": f"{main.color} {main.shape}",
        }
        assert data.classes[data.label(index)] == expected[label]
    counts = Counter(data.label(index) for index in range(128))
    assert set(counts.values()) == {128 // len(data.classes)}
    assert set(counts) == set(range(len(data.classes)))


@given(key=keys, main=classes, most=st.integers(1, 9))
@settings(deadline=None, max_examples=200)
def test_objects_stay_apart_in_the_picture_and_the_main_one_is_largest(key, main, most):
    scene = sample_scene(key, main, most)
    assert 1 <= len(scene.objects) <= most
    assert scene.objects[0].shape == SHAPES[main // len(COLORS)]
    assert scene.objects[0].color == tuple(COLORS)[main % len(COLORS)]
    for i, item in enumerate(scene.objects):
        assert min(item.x, item.y, 1 - item.x, 1 - item.y) > item.radius
        assert (int(item.y * 3), int(item.x * 3)) == (item.row, item.column)
        for other in scene.objects[i + 1 :]:
            gap = math.hypot(item.x - other.x, item.y - other.y) - item.radius - other.radius
            assert gap > 0.02
            assert item.radius > 1.2 * other.radius or i > 0


@given(key=keys, count=st.integers(1, 70), block=st.integers(0, 10**6))
@settings(deadline=None, max_examples=50)
def test_balanced_draws_each_class_once_in_a_block(key, count, block):
    drawn = [balanced(block * count + i, count, key) for i in range(count)]
    assert sorted(drawn) == list(range(count))


def test_numbers_of_objects_are_equally_likely():
    scenes = [sample_scene(key, 0, 4) for key in range(2000)]
    shares = np.bincount([len(s.objects) for s in scenes], minlength=5)[1:] / 2000
    # Three standard deviations of a share of a quarter among 2,000.
    np.testing.assert_allclose(shares, 0.25, atol=3 * math.sqrt(0.25 * 0.75 / 2000))


@given(key=keys, main=classes, motion=st.sampled_from(MOTION_CLASSES), time=st.floats(0, 1))
@settings(deadline=None, max_examples=100)
def test_moving_objects_never_meet_nor_leave(key, main, motion, time):
    moving = set_in_motion(sample_scene(key, main, 5), key, motion)
    assert moving.motions[0] == motion
    objects = moving.at(time).objects
    for i, item in enumerate(objects):
        assert min(item.x, item.y, 1 - item.x, 1 - item.y) > item.radius
        for other in objects[i + 1 :]:
            distance = math.hypot(item.x - other.x, item.y - other.y)
            assert distance > item.radius + other.radius + 0.02


def centroids(frames: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Return the mean (x, y) of the coloured pixels of a part of each frame."""
    values = frames[:, rows, columns].astype(int)
    weights = np.maximum(values.max(-1) - values.min(-1) - 12, 0)
    y, x = np.mgrid[: weights.shape[1], : weights.shape[2]]
    total = weights.sum((1, 2))
    return np.stack([(weights * x).sum((1, 2)), (weights * y).sum((1, 2))], 1) / total[:, None]


def test_clip_moves_in_the_named_directions():
    data = ShapesConfig(image_px=96, max_objects=3, count=16).build("train")
    for index in range(16):
        clip = data.clip(index, 5)
        assert clip.frames.shape == (5, 96, 96, 3)
        assert clip.frames.dtype == np.uint8
        motion = MOTION_CLASSES[clip.label]
        horizontal = MOTIONS[motion][0] != 0
        found = Counter()
        for lane in range(3):
            strip, all_ = slice(32 * lane, 32 * lane + 32), slice(None)
            part = (strip, all_) if horizontal else (all_, strip)
            values = clip.frames[0][part].astype(int)
            if (values.max(-1) - values.min(-1)).max() < 25:
                continue
            step = np.diff(centroids(clip.frames, *part), axis=0)
            way = np.sign(step.sum(0)) * (np.abs(step.sum(0)) > 12)
            # Half the width in four equal steps, and nothing across.
            np.testing.assert_allclose(step, np.tile(way * 12, (4, 1)), atol=0.7)
            found[next(name for name, v in MOTIONS.items() if v == tuple(way))] += 1
        scene = data.scene(index)
        assert found[motion] >= 1
        assert found.total() == len(scene.objects)
        for name in MOTIONS:
            words = f"to the {name}" if horizontal else f"s {name}"
            assert clip.caption.count(words) == found[name]
        for item in scene.objects:
            assert f"{item.size} {item.texture} {item.color} {item.shape}" in clip.caption


def test_clip_labels_are_balanced_and_frames_of_two_clips_agree():
    data = ShapesConfig(image_px=32, count=40).build("train")
    assert Counter(data.clip(i, 2).label for i in range(40)) == dict.fromkeys(range(4), 10)
    coarse, fine = data.clip(3, 2).frames, data.clip(3, 5).frames
    np.testing.assert_array_equal(coarse, fine[::4])
    with refuses("2", error=ValueError):
        data.clip(0, 1)


def test_index_outside_the_split_is_refused():
    data = ShapesConfig(count=5).build("train")
    assert len(data) == 5
    for index in (-1, 5):
        with pytest.raises(IndexError):
            data.read(index)


def test_kind_is_the_file_name():
    config = ShapesConfig(max_objects=2, label="color")
    assert config.as_dict()["kind"] == "shapes"
    assert DatasetConfig.from_dict(config.as_dict()) == config
