"""The clutter data: what it is made of, that it is the same every time, and how fast it is read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from quadriga.contracts import DatasetConfig
from quadriga.data.images.clutter import SHAPES, ClutterConfig, distance, draw, normals, uniforms
from quadriga.data.views.shifts import ShiftedViewsConfig
from quadriga.randomness import fold, fold_numpy

SMALL = {"train_samples": 40, "test_samples": 30}


def pixels(config, split="train"):
    data = config.build(split)
    return np.stack([data.read(i).data for i in range(len(data))])


def test_the_config_is_its_file_and_survives_json():
    config = ClutterConfig()
    assert config.kind() == "clutter"
    assert DatasetConfig.from_dict(config.as_dict()) == config
    assert len(config.build("train")) == 3000
    assert len(config.build("test")) == 2000


def test_pictures_are_grey_and_classes_take_turns():
    data = ClutterConfig(**SMALL).build("test")
    assert len(data) == 30
    assert data.classes == SHAPES
    for index in range(30):
        record = data.read(index)
        assert record.data.shape == (24, 24, 3)
        assert record.data.dtype == np.uint8
        assert (record.data == record.data[:, :, :1]).all()
        assert record.label == index % 10
        assert record.name == data.name(index) == f"clutter test {index}"


def test_a_smaller_data_set_is_the_beginning_of_a_larger_one():
    # More than one block of pictures, and a part of one.
    large = pixels(ClutterConfig(train_samples=1100))
    assert np.array_equal(pixels(ClutterConfig(train_samples=37)), large[:37])
    assert np.array_equal(pixels(ClutterConfig(train_samples=700)), large[:700])


def test_splits_and_seeds_share_no_picture():
    config = ClutterConfig(train_samples=30, test_samples=30)
    train = pixels(config)
    for other in (pixels(config, "test"), pixels(ClutterConfig(seed=1, **SMALL))):
        assert all(not np.array_equal(a, b) for a, b in zip(train, other, strict=False))


def keys(count):
    return fold_numpy(fold("test clutter"), np.arange(count))


def test_the_noise_has_its_deviation():
    quiet = draw(np.zeros(200, np.int64), keys(200), 24, 0.0, 2).astype(np.float64)
    noisy = draw(np.zeros(200, np.int64), keys(200), 24, 0.1, 2).astype(np.float64)
    # Pixels far enough from black and white that nothing is clipped.
    middle = (quiet > 110) & (quiet < 145)
    assert middle.sum() > 1000
    assert (noisy - quiet)[middle].std() / 255 == pytest.approx(0.1, rel=0.05)


def test_without_noise_and_strokes_there_are_two_levels_and_their_edges():
    clean = draw(np.arange(100) % 10, keys(100), 48, 0.0, 0)
    for picture in clean:
        levels = np.sort(np.bincount(picture.ravel(), minlength=256))[::-1]
        assert levels[:2].sum() > 0.75 * picture.size
        # The shape lies whole inside the picture.
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (border == np.bincount(border).argmax()).mean() > 0.9


def test_strokes_are_drawn_beside_the_shape():
    plain = draw(np.arange(50) % 10, keys(50), 24, 0.0, 0)
    struck = draw(np.arange(50) % 10, keys(50), 24, 0.0, 2)
    share = (plain != struck).mean(axis=(1, 2))
    assert 0.02 < share.mean() < 0.3


@pytest.mark.parametrize("number", range(10))
def test_a_shape_is_its_own_mirror_image(number):
    axis = np.linspace(-1, 1, 41, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    found = distance(number, x, y)
    np.testing.assert_allclose(found, distance(number, -x, y), atol=1e-6)
    assert found.dtype == np.float32
    outside = np.hypot(x, y) > 1.001
    assert (found[outside] > 0).all()
    assert 0.1 < (found <= 0).mean() < 0.8


def test_areas_are_those_of_geometry():
    axis = np.linspace(-1, 1, 1001, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    areas = {
        "disc": np.pi * 0.9**2,
        "ring": np.pi * (0.92**2 - 0.52**2),
        "square": 1.4**2,
        "frame": 1.4**2 - 0.76**2,
        "diamond": 2.0,
        "triangle up": 0.75 * np.sqrt(3),
        "triangle down": 0.75 * np.sqrt(3),
        "plus": 2 * 0.52 * 1.84 - 0.52**2,
        "cross": 2 * 0.52 * 1.84 - 0.52**2,
        "star": 5 * 0.42 * np.sin(np.pi / 5),
    }
    for number, name in enumerate(SHAPES):
        found = 4 * (distance(number, x, y) <= 0).mean()
        assert found == pytest.approx(areas[name], rel=0.02), name


def test_triangles_are_each_other_upside_down():
    axis = np.linspace(-1, 1, 21, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    up, down = SHAPES.index("triangle up"), SHAPES.index("triangle down")
    np.testing.assert_array_equal(distance(up, x, y), distance(down, x, -y))
    # The point of the first is at the top, where y is least.
    assert distance(up, np.zeros(1, np.float32), np.full(1, -0.95, np.float32)) < 0


@given(count=st.integers(1, 40), number=st.integers(1, 20))
def test_draws_belong_to_their_key(count, number):
    whole = uniforms(keys(20), "a", count)
    assert np.array_equal(uniforms(keys(20)[:number], "a", count), whole[:number])
    assert normals(keys(number), "b", count).shape == (number, count)


def test_normals_are_normal():
    found = normals(keys(100), "noise", 999).ravel().astype(np.float64)
    assert abs(found.mean()) < 0.01
    assert found.std() == pytest.approx(1, abs=0.01)
    assert (found**4).mean() == pytest.approx(3, rel=0.03)


def test_a_picture_is_handed_on_without_a_copy():
    data = ClutterConfig(**SMALL).build("train")
    view = ShiftedViewsConfig(image_px=24).build("train")
    record = data.read(3)
    assert not record.data.flags.writeable
    found = view.sample(record, 5)["image"]
    assert np.shares_memory(found, record.data)
    assert np.array_equal(found, record.data.transpose(2, 0, 1))


def test_one_process_draws_the_same_data_once():
    first, second = (ClutterConfig(**SMALL).build("train").read(0).data for _ in range(2))
    assert np.shares_memory(first, second)


def flat(split):
    data = ClutterConfig().build(split)
    pixels = np.stack([data.read(i).data[..., 0].ravel() for i in range(len(data))])
    return pixels.astype(np.float32) / 255 - 0.5, data.labels()


def test_raw_pixels_do_not_tell_the_shapes():
    """The data is for models that learn features: others stay far below them, and above chance."""
    train, test = flat("train"), flat("test")
    linear = LogisticRegression(C=0.01, max_iter=500).fit(*train).score(*test)
    neighbours = KNeighborsClassifier(5).fit(*train).score(*test)
    assert 0.12 < linear < 0.3
    assert 0.12 < neighbours < 0.5
