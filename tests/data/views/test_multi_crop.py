"""Multi-crop views against Pillow's chain with the same draws, and their policies and shapes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch.nn import functional

from errors import refuses
from pictures import encoded, noise
from quadriga.config.base import construct
from quadriga.contracts import ViewsConfig, stack
from quadriga.data.images.decode import Box
from quadriga.data.images.digits import DigitsConfig
from quadriga.data.images.record import ImageRecord
from quadriga.data.reading.loader import sequential
from quadriga.data.views.batched import cropped
from quadriga.data.views.crops import normalise, random_box
from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.data.views.policies import PRESETS, Policy, ViewDraws, draw_view
from quadriga.distributed.environment import SINGLE
from quadriga.randomness import Stream, fold

RECORD = ImageRecord(encoded(noise(70, 90), "PNG"), 3, "picture")
SMALL = MultiCropConfig(image_px=24, local_crops=3, local_px=16)


def with_pillow(image, drawn, px):
    """The view as torchvision's transforms make it on a Pillow image."""
    box = drawn.box
    cut = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    image = cut.resize((px, px), Image.Resampling.BICUBIC)
    if drawn.flipped:
        image = ImageOps.mirror(image)
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    steps = [lambda im, n=n, f=f: enhancers[n](im).enhance(f) for n, f in drawn.blends]
    steps.insert(drawn.before_hue, lambda im: turned(im, drawn.hue))
    for step in steps:
        image = step(image)
    if drawn.grey:
        image = image.convert("L").convert("RGB")
    if drawn.sigma:
        image = image.filter(ImageFilter.GaussianBlur(drawn.sigma))
    return ImageOps.solarize(image) if drawn.solarised else image


def turned(image, turns):
    """The hue of a Pillow image rotated as torchvision does it."""
    if turns == 0:
        return image
    hue, saturation, value = image.convert("HSV").split()
    hue = Image.fromarray(np.asarray(hue) + np.array(int(turns * 255)).astype(np.uint8))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


@pytest.mark.parametrize("preset", PRESETS)
def test_views_are_those_of_pillow_with_the_same_draws(preset):
    config = SMALL.override({"augmentation": preset})
    image = Image.open(io.BytesIO(RECORD.data))
    for key in range(6):
        sample = config.build("train").sample(RECORD, key)
        for name, px, scale, policies in config.groups:
            assert sample[name].shape == (len(policies), 3, px, px)
            for number, policy in enumerate(policies):
                own = fold(key, name, number)
                box = random_box(70, 90, scale, (3 / 4, 4 / 3), Stream(own))
                drawn = draw_view(policy, box, 0.5, Stream(fold(own, "augment")))
                expected = np.asarray(with_pillow(image, drawn, px)).transpose(2, 0, 1)
                # A solarised level of 127.5 lies on both sides of the fold, which loses nothing.
                difference = np.abs(sample[name][number].astype(int) - expected)
                assert difference.mean() < 6
                if not drawn.hue and not drawn.sigma:
                    assert difference.max() <= 4


def test_without_colours_a_view_is_the_crop():
    config = MultiCropConfig(image_px=24, augmentation="none", flip_probability=0)
    views = config.build("train").sample(RECORD, 5)["crops"]
    image = Image.open(io.BytesIO(RECORD.data))
    for number, view in enumerate(views):
        box = random_box(70, 90, (0.2, 1.0), (3 / 4, 4 / 3), Stream(fold(5, "crops", number)))
        expected = np.asarray(with_pillow(image, ViewDraws(box), 24)).transpose(2, 0, 1)
        assert np.abs(view.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(0, 0, 40, 40), (3, 7, 31, 22), (10, 2, 9, 8)])
def test_crops_of_a_batch_are_those_of_interpolate(interpolation, box):
    picture = torch.from_numpy(noise(40, 40).transpose(2, 0, 1).copy())
    pictures = torch.stack([picture.flip(0), picture])
    draws = [ViewDraws(Box(1, 2, 30, 30)), ViewDraws(Box(*box), flipped=True)]
    numbers = torch.from_numpy(np.stack([d.numbers() for d in draws]))
    ours = cropped(pictures, numbers, 24, interpolation)[1]
    cut = picture[None, :, box[0] : box[0] + box[2], box[1] : box[1] + box[3]].float()
    expected = functional.interpolate(cut, (24, 24), mode=interpolation, antialias=True)
    torch.testing.assert_close(ours.flip(-1), expected[0].clamp(0, 255), rtol=0, atol=1e-3)


@pytest.mark.parametrize("preset", ["simclr", "byol"])
@pytest.mark.parametrize("px", [24, 72])
def test_views_of_the_device_are_those_of_the_workers(preset, px):
    """24 px: all of a batch at once. 72 px: one after another, on a CPU."""
    values = {"augmentation": preset, "image_px": px, "picture_scale": 90 / px}
    config = SMALL.override(values)
    workers = config.build("train")
    device = config.override({"on": "device"}).build("train")
    std = torch.tensor(config.std)[:, None, None]
    expected, ours = (
        view.batch(
            stack([view.sample(RECORD, key) for key in keys], np.array(keys), np.array(keys))
        )
        for view, keys in ((workers, range(4)), (device, range(4)))
    )
    assert expected.keys() == ours.keys()
    for name in ("crops", "local_crops"):
        levels = ((ours[name] - expected[name]) * std * 255).abs()
        # The resize is rounded to a level, which a strong contrast triples.
        assert levels.max() < 10, name
        assert levels.mean() < 1, name


def test_views_of_the_device_do_not_depend_on_the_batch():
    view = SMALL.override({"on": "device", "picture_scale": 2}).build("train")
    samples = [view.sample(RECORD, key) for key in range(5)]
    whole = view.batch(stack(samples, np.arange(5), np.arange(5)))
    for number, sample in enumerate(samples):
        alone = view.batch(stack([sample], np.arange(1), np.arange(1)))
        for name in ("crops", "local_crops"):
            torch.testing.assert_close(alone[name][0], whole[name][number], rtol=0, atol=1e-4)


def test_views_of_the_device_are_the_same_under_autocast():
    view = SMALL.override({"on": "device", "picture_scale": 2}).build("train")
    batch = stack([view.sample(RECORD, key) for key in range(2)], np.arange(2), np.arange(2))
    plain = view.batch(batch)
    with torch.autocast("cpu", torch.bfloat16):
        again = view.batch(batch)
    for name in ("crops", "local_crops"):
        assert again[name].dtype == torch.float32
        assert torch.equal(again[name], plain[name])


def test_a_larger_image_reaches_the_device_smaller():
    config = SMALL.override({"on": "device", "picture_scale": 2})
    sample = config.build("train").sample(RECORD, 3)
    assert sample["picture"].shape == (3, 48, 48)
    image = Image.open(io.BytesIO(RECORD.data)).resize((48, 37), Image.Resampling.BICUBIC)
    difference = sample["picture"][:, :37].astype(int) - np.asarray(image).transpose(2, 0, 1)
    assert np.abs(difference).max() <= 1
    assert not sample["picture"][:, 37:].any()
    assert (sample["draws"][:, 0] + sample["draws"][:, 2]).max() <= 37


def test_draws_survive_their_numbers():
    config = SMALL.override({"augmentation": "byol"})
    for key in range(20):
        for drawn in config.groups[0].draw(70, 90, key, config):
            again = ViewDraws.of(drawn.numbers().tolist())
            assert again._replace(blends=(), hue=0, sigma=0) == drawn._replace(
                blends=(), hue=0, sigma=0
            )
            assert [name for name, _ in again.blends] == [name for name, _ in drawn.blends]
            np.testing.assert_allclose(again.numbers(), drawn.numbers(), rtol=1e-6)


def test_draws_have_the_probabilities_and_ranges_of_the_policy():
    policy = Policy(
        jitter_probability=0.8, brightness=0.4, hue=0.1, grey_probability=0.2, blur_probability=0.1
    )
    drawn = [draw_view(policy, (0, 0, 1, 1), 0.5, Stream(fold(key))) for key in range(2000)]
    jittered = [d for d in drawn if d.blends]
    # Shares of 2,000 draws: the standard deviation is at most 0.011.
    for share, expected in (
        (len(jittered) / 2000, 0.8),
        (np.mean([d.flipped for d in drawn]), 0.5),
        (np.mean([d.grey for d in drawn]), 0.2),
        (np.mean([d.sigma > 0 for d in drawn]), 0.1),
        (np.mean([d.before_hue == 0 for d in jittered]), 0.25),
        (np.mean([d.blends[0][0] == "contrast" for d in jittered]), 1 / 3),
        (np.mean([dict(d.blends)["brightness"] for d in jittered]), 1.0),
    ):
        assert abs(share - expected) < 0.04
    assert not any(d.solarised for d in drawn)
    factors = [dict(d.blends)["brightness"] for d in jittered]
    assert 0.6 <= min(factors) < 0.62
    assert 1.38 < max(factors) < 1.4
    assert 0.097 < max(d.hue for d in drawn) < 0.1
    assert 0.1 < min(d.sigma for d in drawn if d.sigma) < 0.14


def test_presets_differ_from_view_to_view_and_can_be_changed():
    config = SMALL.override(
        {"augmentation": "byol", "every.hue": 0, "second.blur_probability": 0.3, "crops": 3}
    )
    large, small = (g.policies for g in config.groups)
    assert [p.blur_probability for p in large] == [1.0, 0.3, 0.3]
    assert [p.solarise_probability for p in large] == [0.0, 0.2, 0.2]
    assert {p.hue for p in (*large, *small)} == {0.0}
    assert [p.blur_probability for p in small] == [0.5] * 3


def test_views_of_a_sample_and_samples_differ():
    view = SMALL.build("train")
    first, again, other = (view.sample(RECORD, key) for key in (1, 1, 2))
    for name in ("crops", "local_crops"):
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name][0] != first[name][1]).any()
        assert (first[name] != other[name]).any()


@pytest.mark.parametrize("local", [0, 3])
@pytest.mark.parametrize("on", ["workers", "device"])
def test_batches_look_like_the_example(local, on):
    config = SMALL.override({"local_crops": local, "on": on})
    view = config.build("train")
    samples = [view.sample(RECORD, key) for key in range(2)]
    stacked = stack(samples, np.arange(2), np.arange(2))
    real = view.batch(stacked)
    for name in stacked.keys() & {"crops", "local_crops"}:
        assert torch.equal(real[name], normalise(stacked[name], config.mean, config.std))
    example = view.example(2, torch.device("cpu"))
    assert {k: (v.shape, v.dtype) for k, v in real.items()} == {
        k: (v.shape, v.dtype) for k, v in example.items()
    }
    assert config.build("test").sample(RECORD, 0)["image"].shape == (3, 24, 24)


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("augmentation", "simclear", "simclr"),
        ("crop_scale", [0.0, 1.0], "shares"),
        ("local_scale", [0.5, 0.1], "ascending"),
        ("crops", 1, "2"),
    ],
)
def test_what_cannot_be_is_refused(field, value, remedy):
    with refuses(field, remedy):
        SMALL.override({field: value}, "command line")


def test_the_config_survives_json():
    config = SMALL.override({"every.hue": 0.05, "local.blur_sigma": [0.2, 1.0]})
    assert construct(ViewsConfig, config.as_dict()) == config


@pytest.mark.long
@pytest.mark.parametrize("on", ["workers", "device"])
def test_views_do_not_depend_on_the_number_of_workers(on):
    config = SMALL.override({"on": on, "augmentation": "byol"})
    dataset, view = DigitsConfig(image_px=32).build("train"), config.build("train")
    batches = [
        list(sequential(dataset, view, range(12), batch_size=4, env=SINGLE, workers=workers))
        for workers in (0, 1, 3)
    ]
    for other in batches[1:]:
        for one, same in zip(batches[0], other, strict=True):
            assert all(torch.equal(one[name], same[name]) for name in one)
