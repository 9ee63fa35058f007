import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from errors import refuses
from pictures import encoded, noise
from quadriga.config.base import construct
from quadriga.contracts import ViewsConfig, stack
from quadriga.data.images.record import ImageRecord
from quadriga.data.views.crops import ImageViewsConfig, normalise, random_box
from quadriga.randomness import Stream, fold, pass_keys, uniform_rows

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@settings(deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(0, 2**64 - 1),
    st.floats(0.01, 1.0),
    st.floats(0.2, 1.0),
)
def test_boxes_lie_inside_the_image(height, width, key, low, ratio):
    box = random_box(height, width, (low, 1.0), (ratio, 1 / ratio), Stream(key))
    assert box.height >= 1
    assert box.width >= 1
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width


def test_boxes_have_the_areas_and_ratios_that_were_asked_for():
    boxes = [random_box(300, 400, (0.2, 0.5), (0.75, 4 / 3), Stream(key)) for key in range(2000)]
    areas = np.array([box.height * box.width for box in boxes]) / 120_000
    ratios = np.array([box.width / box.height for box in boxes])
    assert 0.198 < areas.min() < 0.21
    assert 0.49 < areas.max() < 0.505
    # 2,000 uniform draws: the mean's standard deviation is 0.002.
    assert abs(areas.mean() - 0.35) < 0.01
    assert 0.74 < ratios.min() < 0.77
    assert 1.31 < ratios.max() < 1.35
    assert abs(np.log(ratios).mean()) < 0.02


def test_images_where_no_box_fits_are_cut_in_the_centre():
    assert random_box(10, 400, (0.9, 1.0), (0.75, 4 / 3), Stream(3)) == (0, 193, 10, 13)
    assert random_box(400, 10, (0.9, 1.0), (0.75, 4 / 3), Stream(3)) == (193, 0, 13, 10)


def record(height, width, label=3, kind="PNG"):
    return ImageRecord(encoded(noise(height, width), kind), label, "picture")


def test_a_training_view_is_the_resized_box_of_its_key():
    view = ImageViewsConfig(image_px=24).build("train")
    item = record(70, 90)
    sample = view.sample(item, 99)
    box = random_box(70, 90, (0.2, 1.0), (3 / 4, 4 / 3), Stream(99))
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    expected = Image.open(io.BytesIO(item.data)).crop(corners)
    expected = expected.resize((24, 24), Image.Resampling.BICUBIC)
    difference = sample["image"].astype(int) - np.asarray(expected).transpose(2, 0, 1)
    assert sample["image"].dtype == np.uint8
    assert np.abs(difference).max() <= 1
    assert sample["label"] == 3
    assert sample["label"].dtype == np.int64


def test_without_a_label_there_is_none():
    for split in ("train", "test"):
        view = ImageViewsConfig(image_px=8).build(split)
        assert view.sample(record(20, 20, None), 0).keys() == {"image"}


@pytest.mark.parametrize("shape", [(70, 90), (91, 64), (64, 64), (40, 50), (300, 1000)])
@pytest.mark.parametrize("fraction", [0.875, 1.0])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_evaluation_view_is_the_standard_one(shape, fraction, kind):
    """Shorter side to image_px / fraction, centre crop, as Pillow does it, to one level."""
    view = ImageViewsConfig(image_px=56, test_crop_fraction=fraction).build("test")
    item = record(*shape, kind=kind)
    image = Image.open(io.BytesIO(item.data)).convert("RGB")
    side, (width, height) = int(56 / fraction), image.size
    size = (side, side * height // width) if width < height else (side * width // height, side)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - 56) / 2), round((size[1] - 56) / 2)
    expected = np.asarray(resized.crop((left, top, left + 56, top + 56))).transpose(2, 0, 1)
    ours = view.sample(item, 5)["image"]
    assert np.abs(ours.astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(ours, view.sample(item, 6)["image"])


def test_a_long_strip_needs_little_memory():
    strip = np.zeros((2, 60_000, 3), np.uint8)
    strip[:, 29_990:30_010] = 200
    view = ImageViewsConfig(image_px=32, test_crop_fraction=1.0).build("test")
    image = view.sample(ImageRecord(strip, 0, "strip"), 0)["image"]
    assert image.shape == (3, 32, 32)
    assert (image == 200).all()


def batch_of(count, px):
    rng = np.random.default_rng(0)
    images = [{"image": rng.integers(0, 256, (3, px, px), np.uint8)} for _ in range(count)]
    return stack(images, np.arange(count), rng.integers(-(2**63), 2**63, count))


def test_normalisation_is_the_textbook_one():
    images = batch_of(3, 5)["image"]
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    expected = (images.double() / 255 - mean) / std
    ours = normalise(images, MEAN, STD)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=2e-6)


def test_training_batches_are_flipped_by_key_and_evaluation_batches_are_not():
    batch = batch_of(64, 6)
    config = ImageViewsConfig(image_px=6)
    plain = config.build("test").batch(batch)["image"]
    flips = uniform_rows(batch["key"], fold("flip"), 1)[:, 0] < 0.5
    assert 10 < int(flips.sum()) < 54
    ours = config.build("train").batch(batch)
    for image, reference, flip in zip(ours["image"], plain, flips, strict=True):
        assert torch.equal(image, reference.flip(-1) if flip else reference)
    assert torch.equal(ours["key"], batch["key"])
    for probability, expected in ((0.0, plain), (1.0, plain.flip(-1))):
        view = config.override({"flip_probability": probability}).build("train")
        assert torch.equal(view.batch(batch)["image"], expected)


def test_the_batch_that_was_given_is_left_as_it_was():
    batch = batch_of(4, 6)
    before = batch["image"].clone()
    ImageViewsConfig(image_px=6).build("train").batch(batch)
    assert torch.equal(batch["image"], before)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_example_looks_like_a_batch(split):
    view = ImageViewsConfig(image_px=16).build(split)
    samples = [view.sample(record(20, 30), key) for key in range(3)]
    real = view.batch(stack(samples, np.arange(3), np.arange(3)))
    example = view.example(3, torch.device("meta"))
    assert {k: (v.shape, v.dtype) for k, v in real.items()} == {
        k: (v.shape, v.dtype) for k, v in example.items()
    }
    assert {v.device.type for v in example.values()} == {"meta"}
    on_meta = {"image": torch.empty(3, 3, 16, 16, dtype=torch.uint8, device="meta")}
    on_meta["key"] = torch.empty(3, dtype=torch.int64, device="meta")
    assert view.batch(on_meta)["image"].dtype == torch.float32


@pytest.mark.parametrize(
    ("key", "value", "fragments"),
    [
        ("crop_scale", "[0.5,0.2]", ("crop_scale", "ascending", "0.2")),
        ("crop_ratio", "[0,1]", ("crop_ratio", "ascending", "0.0")),
        ("std", "[1,0,1]", ("std", "above 0")),
        ("flip_probability", "1.5", ("flip_probability", "between 0 and 1", "1.5")),
        ("image_px", "0", ("image_px", "above 0")),
        ("interpolation", "bicubicc", ("interpolation", "bicubicc", "bicubic")),
    ],
)
def test_values_out_of_range(key, value, fragments):
    with refuses(*fragments):
        ImageViewsConfig().override({key: value}, "command line")


def test_the_config_survives_json():
    config = ImageViewsConfig(image_px=32, interpolation="bilinear")
    assert construct(ViewsConfig, config.as_dict()) == config


def test_several_crops_are_the_views_of_their_own_keys():
    config = ImageViewsConfig(image_px=12)
    one, several = config.build("train"), config.override({"crops": 3}).build("train")
    pairs = [(record(40, 50, label), 5 + label) for label in range(4)]
    keys = np.array([key for _, key in pairs])
    batch = stack([several.sample(item, key) for item, key in pairs], np.arange(4), keys)
    assert "image" not in batch
    done = several.batch(batch)["crops"]
    assert done.shape == (4, 3, 3, 12, 12)
    for number in range(3):
        own = [one.sample(item, fold(key, "crop", number)) for item, key in pairs]
        expected = one.batch(
            {**stack(own, np.arange(4), keys), "key": pass_keys(batch["key"], f"crop {number}")}
        )["image"]
        assert torch.equal(done[:, number], expected)
    assert not torch.equal(done[:, 0], done[:, 1])
    example = several.example(4, torch.device("meta"))
    assert {n: (t.shape, t.dtype) for n, t in example.items()} == {
        n: (t.shape, t.dtype) for n, t in several.batch(batch).items()
    }
    whole = config.override({"crops": 3}).build("test").sample(pairs[0][0], 1)
    assert whole["image"].shape == (3, 12, 12)
