"""Shifted views against shifts by numpy, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from errors import refuses
from pictures import encoded, noise
from quadriga.contracts import ViewsConfig
from quadriga.data.images.record import ImageRecord
from quadriga.data.views.shifts import ShiftedViewsConfig, shifted
from quadriga.randomness import pass_keys


def by_numpy(image, shift, flip, fill):
    """Pad, cut out and mirror one image (channels, height, width)."""
    height, width = image.shape[1:]
    pad = max(abs(int(s)) for s in shift)
    mode = {"zero": "constant", "edge": "edge"}[fill]
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode=mode)
    top, left = pad - int(shift[0]), pad - int(shift[1])
    cut = padded[:, top : top + height, left : left + width]
    return cut[:, :, ::-1] if flip else cut


@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    seed=st.integers(0, 100),
    fill=st.sampled_from(["zero", "edge"]),
)
def test_a_shift_is_a_cut_of_the_padded_image(height, width, seed, fill):
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 256, (5, 3, height, width), np.uint8)
    limit = min(height, width) - 1
    shifts = rng.integers(-limit, limit + 1, (5, 2))
    flips = rng.integers(0, 2, 5).astype(bool)
    found = shifted(
        torch.from_numpy(images), torch.from_numpy(shifts), torch.from_numpy(flips), fill
    )
    assert found.dtype == torch.uint8
    for image, shift, flip, one in zip(images, shifts, flips, found, strict=True):
        np.testing.assert_array_equal(one.numpy(), by_numpy(image, shift, flip, fill))


PLAIN = {"image_px": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}


def batch_of(count):
    images = torch.randint(
        1, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    index = torch.arange(count)
    return {"image": images, "label": index, "index": index, "key": index * 977 + 13}


def test_every_shift_is_as_frequent_and_every_image_has_its_own():
    view = ShiftedViewsConfig.from_dict({**PLAIN, "shift_px": 2}).build("train")
    batch = batch_of(2000)
    # One bright pixel tells where the image went; the flip turns its column about.
    batch["image"] = torch.zeros_like(batch["image"])
    batch["image"][:, :, 3, 3] = 255
    found = view.batch(batch)["image"][:, 0]
    counts = found.sum(0)
    assert counts.sum() == 2000
    rows, columns = counts.sum(1), counts.sum(0)
    assert torch.equal(rows > 0, torch.tensor([0, 1, 1, 1, 1, 1, 0, 0], dtype=torch.bool))
    assert torch.equal(columns > 0, torch.tensor([0, 1, 1, 1, 1, 1, 1, 0], dtype=torch.bool))
    assert ((rows[1:6] - 400).abs() < 80).all()
    # Columns 1 to 5 unflipped and 6 to 2 flipped: the outer ones have half.
    expected = torch.tensor([200, 400, 400, 400, 400, 200]).float()
    assert ((columns[1:7] - expected).abs() < 80).all()


def test_a_view_belongs_to_its_key_however_the_batch_is_cut():
    view = ShiftedViewsConfig.from_dict({**PLAIN, "shift_px": 3}).build("train")
    batch = batch_of(12)
    whole = view.batch(batch)["image"]
    parts = [view.batch({k: v[i : i + 3] for k, v in batch.items()})["image"] for i in (0, 3, 6, 9)]
    assert torch.equal(torch.cat(parts), whole)


def test_without_shift_and_flip_training_is_evaluation():
    values = {"image_px": 8, "shift_px": 0, "flip_probability": 0}
    config = ShiftedViewsConfig.from_dict(values)
    train, test = config.build("train"), config.build("test")
    batch = batch_of(6)
    assert torch.equal(train.batch(batch)["image"], test.batch(batch)["image"])
    record = ImageRecord(encoded(noise(30, 20)), 3, "x")
    for name, value in train.sample(record, 1).items():
        np.testing.assert_array_equal(value, test.sample(record, 2)[name])


def test_evaluation_neither_shifts_nor_flips():
    view = ShiftedViewsConfig.from_dict(PLAIN).build("test")
    batch = batch_of(6)
    torch.testing.assert_close(view.batch(batch)["image"], batch["image"] / 255)
    pixels = noise(8, 8)
    sample = view.sample(ImageRecord(pixels, None, "x"), 0)
    assert sample.keys() == {"image"}
    np.testing.assert_array_equal(sample["image"], pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_example_is_what_a_batch_becomes(split):
    view = ShiftedViewsConfig(image_px=8).build(split)
    example, real = view.example(4, torch.device("cpu")), view.batch(batch_of(4))
    assert example.keys() == real.keys()
    for name, value in example.items():
        assert (value.shape, value.dtype) == (real[name].shape, real[name].dtype), name


def test_config_round_trips_and_refuses():
    config = ShiftedViewsConfig(image_px=24, shift_px=2, fill="edge")
    assert config.kind() == "shifted_views"
    assert ViewsConfig.from_dict(config.as_dict()) == config
    with refuses("shift_px", "image_px", "4"):
        ShiftedViewsConfig.from_dict({"image_px": 4})
    with refuses("std", "above 0"):
        ShiftedViewsConfig.from_dict({"std": [1, 0, 1]})


def test_several_views_are_those_of_their_own_keys():
    batch = batch_of(5)
    config = ShiftedViewsConfig(**PLAIN, crops=2)
    done = config.build("train").batch(batch)
    assert "image" not in done
    one = config.override({"crops": 1}).build("train")
    for number in range(2):
        keyed = {**batch, "key": pass_keys(batch["key"], f"crop {number}")}
        assert torch.equal(done["crops"][:, number], one.batch(keyed)["image"])
    assert not torch.equal(done["crops"][:, 0], done["crops"][:, 1])
    example = config.build("train").example(5, torch.device("cpu"))
    assert {n: t.shape for n, t in example.items()} == {n: t.shape for n, t in done.items()}
