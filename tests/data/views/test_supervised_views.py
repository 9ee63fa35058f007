"""The views of supervised training, put together: every part in its place, by the sample's key."""

import io
import warnings

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
from quadriga.data.views.crops import ImageViewsConfig, flip, normalise, random_box
from quadriga.data.views.erasing import erase
from quadriga.data.views.mixing import mix
from quadriga.data.views.operations import apply
from quadriga.data.views.supervised import SupervisedViewsConfig
from quadriga.randomness import Stream, fold

PLAIN = {
    "augment": "none",
    "color_jitter": 0.0,
    "erase_probability": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}
"""A crop and a flip, and nothing else."""


def views(**changes):
    return SupervisedViewsConfig(**{"image_px": 16, **changes})


def record(height, width, label=3, kind="PNG"):
    return ImageRecord(encoded(noise(height, width), kind), label, "picture")


def batch_of(count, px=16):
    rng = np.random.default_rng(0)
    images = [
        {"image": rng.integers(0, 256, (3, px, px), np.uint8), "label": np.array(i % 5)}
        for i in range(count)
    ]
    return stack(images, np.arange(count), rng.integers(-(2**63), 2**63, count))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_without_the_rest_it_is_the_standard_view(kind):
    plain = ImageViewsConfig(image_px=16, crop_scale=(0.08, 1.0))
    ours = views(**PLAIN)
    item = record(70, 90, kind=kind)
    for split in ("train", "test"):
        for key in range(4):
            expected = plain.build(split).sample(item, key)
            sample = ours.build(split).sample(item, key)
            assert sample.keys() == expected.keys()
            np.testing.assert_array_equal(sample["image"], expected["image"])
            assert sample["label"].dtype == np.int64
        batch = batch_of(16)
        found, expected = ours.build(split).batch(batch), plain.build(split).batch(batch)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_what_is_drawn_is_applied_to_the_crop():
    config = views(augment="rand-m9-mstd0.5-inc1-p1")
    view, policy, item = config.build("train"), config.augmentation(), record(40, 50)
    crops = views(**PLAIN).build("train")
    for key in range(20):
        drawn = policy.draw(Stream(fold(key, "augment")))
        expected = apply(crops.sample(item, key)["image"], drawn)
        np.testing.assert_array_equal(view.sample(item, key)["image"], expected)
        assert {operation.fill for operation in drawn} == {(124, 116, 104)}


def test_a_random_filter_is_one_of_two():
    view, item = views(**PLAIN, interpolation="random").build("train"), record(40, 50)
    filters = ("bicubic", "bilinear")
    both = [views(**PLAIN, interpolation=name).build("train") for name in filters]
    counts = [0, 0]
    for key in range(60):
        image = view.sample(item, key)["image"]
        same = [np.array_equal(image, other.sample(item, key)["image"]) for other in both]
        assert sum(same) == 1
        counts[same.index(True)] += 1
    assert min(counts) > 15


@pytest.mark.parametrize("border", ["black", "reflect"])
def test_a_padded_crop_is_a_window_of_the_padded_image(border):
    config = views(**PLAIN, crop="padded", crop_border=border, crop_padding=3)
    pixels = noise(16, 16)
    view, places = config.build("train"), set()
    mode = {"black": "constant", "reflect": "reflect"}[border]
    padded = np.pad(pixels, ((3, 3), (3, 3), (0, 0)), mode=mode).transpose(2, 0, 1)
    windows = {
        padded[:, y : y + 16, x : x + 16].tobytes(): (y, x) for y in range(7) for x in range(7)
    }
    for key in range(400):
        places.add(windows[view.sample(ImageRecord(pixels, 1, "array"), key)["image"].tobytes()])
    assert len(places) == 49


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 80),
    st.integers(1, 80),
    st.sampled_from(["resized", "padded"]),
    st.sampled_from(["black", "reflect"]),
    st.sampled_from(["none", "three_augment", "rand-m10-p1-inc1-n4", "rand-w0"]),
    st.integers(0, 2**64 - 1),
)
def test_images_of_any_size_become_views(height, width, crop, border, augment, key):
    config = views(crop=crop, crop_border=border, augment=augment)
    item = ImageRecord(noise(height, width), 0, "array")
    first, second = (config.build("train").sample(item, key)["image"] for _ in range(2))
    assert first.shape == (3, 16, 16)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)


def test_a_padded_crop_of_a_larger_image_is_of_the_resized_one():
    pixels = noise(32, 48)
    config = views(**PLAIN, crop="padded", crop_padding=0)
    resized = Image.fromarray(pixels).resize((24, 16), Image.Resampling.BICUBIC)
    expected = np.asarray(resized).transpose(2, 0, 1).astype(int)
    for key in range(10):
        image = config.build("train").sample(ImageRecord(pixels, 0, "array"), key)["image"]
        distance = [np.abs(image - expected[..., x : x + 16]).max() for x in range(9)]
        assert min(distance) <= 1


def test_the_batched_part_is_its_parts_in_order():
    config, batch = views(), batch_of(32)
    before = {name: tensor.clone() for name, tensor in batch.items()}
    images = normalise(flip(batch["image"], batch["key"], 0.5), config.mean, config.std)
    images = erase(images, batch["key"], config.erasing)
    expected = mix({**batch, "image": images}, config.mixing)
    found = config.build("train").batch(batch)
    assert found.keys() == expected.keys() == {*batch, "mixed_label", "share"}
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert all(torch.equal(batch[name], before[name]) for name in batch)


def test_four_micro_batches_are_one_batch():
    config, batch = views(mix_mode="pair", erase_count=2), batch_of(32)
    view = config.build("train")
    parts = [
        view.batch({name: tensor[start : start + 8] for name, tensor in batch.items()})
        for start in range(0, 32, 8)
    ]
    for name, tensor in view.batch(batch).items():
        assert torch.equal(tensor, torch.cat([part[name] for part in parts])), name


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("changes", [{}, {"mixup": 0.0, "cutmix": 0.0}, {"erase_mode": "rand"}])
def test_the_example_looks_like_a_batch(split, changes):
    view = views(**changes).build(split)
    samples = [view.sample(record(20, 30), key) for key in range(3)]
    real = view.batch(stack(samples, np.arange(3), np.arange(3)))
    example = view.example(3, torch.device("meta"))
    assert {k: (v.shape, v.dtype) for k, v in real.items()} == {
        k: (v.shape, v.dtype) for k, v in example.items()
    }
    assert {v.device.type for v in example.values()} == {"meta"}
    raw = {"image": torch.empty(3, 3, 16, 16, dtype=torch.uint8), "label": torch.zeros(3).long()}
    raw["key"] = raw["label"]
    on_meta = view.batch({name: tensor.to("meta") for name, tensor in raw.items()})
    assert on_meta["image"].dtype == torch.float32
    assert on_meta["image"].shape == (3, 3, 16, 16)
    assert ("share" in on_meta) == (split == "train" and not changes.keys() & {"mixup"})


def test_grey_images_stay_grey():
    """Images of three equal channels, with a mean that is grey: but for the noise of erasing."""
    grey = np.repeat(noise(24, 24)[..., :1], 3, 2)
    config = views(
        image_px=24, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), erase_mode="const",
        augment="rand-m9-mstd0.5-inc1-p1", erase_probability=1.0, crop="padded",
    )  # fmt: skip
    view = config.build("train")
    samples = [view.sample(ImageRecord(grey, 0, "grey"), key) for key in range(30)]
    images = view.batch(stack(samples, np.arange(30), np.arange(30)))["image"]
    assert torch.equal(images, images[:, :1].expand_as(images))


def test_mixing_needs_labels():
    item = record(20, 20, label=None)
    with refuses("views.mixup", "views.cutmix", "picture", "0"):
        views().build("train").sample(item, 0)
    assert views().build("test").sample(item, 0).keys() == {"image"}
    assert views(mixup=0.0, cutmix=0.0).build("train").sample(item, 0).keys() == {"image"}


def test_evaluation_keeps_its_own_filter():
    item = record(50, 60)
    expected = ImageViewsConfig(image_px=16, interpolation="bilinear").build("test")
    ours = views(interpolation="random", test_interpolation="bilinear").build("test")
    np.testing.assert_array_equal(ours.sample(item, 0)["image"], expected.sample(item, 1)["image"])


def test_crops_have_the_published_scale():
    config = views(**PLAIN, image_px=8)
    image = Image.open(io.BytesIO(record(60, 60).data))
    box = random_box(60, 60, (0.08, 1.0), (3 / 4, 4 / 3), Stream(5))
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    expected = image.crop(corners).resize((8, 8), Image.Resampling.BICUBIC)
    ours = config.build("train").sample(record(60, 60), 5)["image"]
    assert np.abs(ours - np.asarray(expected).transpose(2, 0, 1).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("key", "value", "fragments"),
    [
        ("augment", "rand-m9-q2", ("augment", "'rand-m9-q2'", "'q2'")),
        ("augment", "augmix-m5", ("augment", "none", "three_augment", "'augmix-m5'")),
        ("crop_scale", "[0.5,0.2]", ("crop_scale", "ascending", "0.2")),
        ("erase_area", "[0.5,1.2]", ("erase_area", "ascending", "1.2")),
        ("erase_aspect", "[0,1]", ("erase_aspect", "ascending", "0.0")),
        ("cutmix_minmax", "[0,0.5]", ("cutmix_minmax", "ascending", "0.0")),
        ("std", "[1,0,1]", ("std", "above 0")),
        ("mix_mode", "pairs", ("mix_mode", "pairs", "pair")),
        ("crop_border", "mirror", ("crop_border", "mirror", "black, reflect")),
        ("erase_count", "0", ("erase_count", "0")),
    ],
)
def test_values_out_of_range(key, value, fragments):
    with refuses(*fragments):
        SupervisedViewsConfig().override({key: value}, "command line")


def test_the_config_survives_json():
    config = views(augment="three_augment", cutmix_minmax=(0.2, 0.8))
    assert config.kind() == "supervised_views"
    assert construct(ViewsConfig, config.as_dict()) == config


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for_and_agrees_with_the_cpu():
    view, batch = views(mix_mode="elem", erase_count=2).build("train"), batch_of(64)
    device = torch.device("cuda")
    moved = {name: tensor.to(device) for name, tensor in batch.items()}
    view.batch(moved)  # tables go to the device once
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        found = view.batch(moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = view.batch(batch)
    assert torch.equal(found["share"].cpu(), expected["share"])
    assert torch.equal(found["mixed_label"].cpu(), expected["mixed_label"])
    # A side of an erased box may round to the other of two whole numbers.
    same = torch.isclose(found["image"].cpu(), expected["image"], atol=1e-5)
    assert same.float().mean() > 0.99
