"""The embedded digits against what scikit-learn returns."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from quadriga.contracts import DatasetConfig
from quadriga.data.images.digits import DigitsConfig, _load


def position(name: str) -> int:
    return int(name.removeprefix("digit "))


def test_splits_hold_every_digit_once_and_a_fifth_of_each_class_is_held_out():
    original = load_digits()
    splits = {split: DigitsConfig().build(split) for split in ("train", "test")}
    positions = {
        split: [position(data.name(i)) for i in range(len(data))] for split, data in splits.items()
    }
    assert sorted(positions["train"] + positions["test"]) == list(range(1797))
    held_out = np.bincount(original.target[positions["test"]])
    assert np.abs(held_out - np.bincount(original.target) / 5).max() < 1
    assert len(splits["test"]) == 360


@pytest.mark.parametrize("split", ["train", "test"])
def test_pixels_and_labels_are_scikit_learns(split):
    original = load_digits()
    # At ten pixels (eight and the margin) the enlargement is the identity.
    data = DigitsConfig(image_px=10).build(split)
    for index in range(0, len(data), 7):
        record = data.read(index)
        source = position(record.name)
        expected = np.rint(original.images[source] * 255 / 16)
        assert record.data.shape == (10, 10, 3)
        assert record.data.dtype == np.uint8
        for channel in range(3):
            np.testing.assert_array_equal(record.data[1:-1, 1:-1, channel], expected)
        assert record.data[0].max() == record.data[:, -1].max() == 0
        assert record.label == original.target[source]
        assert data.classes[record.label] == str(original.target[source])


def test_enlarged_digits_keep_their_mean():
    small, large = (DigitsConfig(image_px=px).build("test") for px in (10, 40))
    for index in range(0, 360, 30):
        means = [data.read(index).data.mean() for data in (small, large)]
        # Bicubic overshoot is clipped at black, which adds a little light.
        assert means[1] == pytest.approx(means[0], abs=6)
        assert large.read(index).data.shape == (40, 40, 3)


def test_kind_is_the_file_name():
    config = DigitsConfig(image_px=24)
    assert config.as_dict() == {"kind": "digits", "image_px": 24}
    assert DatasetConfig.from_dict(config.as_dict()) == config


def test_what_is_read_is_what_scikit_learn_loads() -> None:
    pixels, labels = _load()
    expected = load_digits()
    np.testing.assert_array_equal(pixels, expected.images)
    np.testing.assert_array_equal(labels, expected.target)
