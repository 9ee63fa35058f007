"""Augmentation of one image in a worker: this project beside Pillow alone.

    python benchmarks/augmentation.py [--images 24] [--repeats 7] [--px 224]

Processor time on one core, in milliseconds per image. Each operation of RandAugment is applied to
the same images at magnitude 9: from and to the planes of channels that training reads, against the
chain of Pillow calls of the published recipes, which start and end with a Pillow image. Then whole
views (decode a JPEG, crop, augment), of which Pillow's side is decoded and resized by Pillow too,
and what the device does for a batch, here on the processor. The repeats are interleaved, so that
whatever else the machine does meets both sides; shown are medians, and the ratio of them.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance, ImageOps

from image_decoding import noise_jpeg
from quadriga.contracts import Batch, Transform, stack
from quadriga.data.images.record import ImageRecord
from quadriga.data.views.augmentation import CHOICES, RandAugmentSettings, amount_of
from quadriga.data.views.crops import random_box
from quadriga.data.views.operations import Drawn, Filter, apply
from quadriga.data.views.supervised import SupervisedViewsConfig
from quadriga.randomness import Stream, fold

FILL = (124, 116, 104)
SETTINGS = RandAugmentSettings(magnitude=9, increasing=True)
PLAIN: dict[str, Any] = {"augment": "none", "color_jitter": 0.0}
Work = Callable[[], object]


def with_pillow(image: Image.Image, drawn: Drawn) -> Image.Image:
    """Apply one operation as the published recipes do, with Pillow's own functions."""
    amount = drawn.amount
    table = [value + int(amount) if value < 128 else value for value in range(256)]
    matrices: dict[str, tuple[float, ...]] = {
        "shear_x": (1, amount, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, amount, 1, 0),
        "translate_x": (1, 0, amount * image.width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, amount * image.height),
    }
    if drawn.name in matrices:
        affine, matrix = Image.Transform.AFFINE, matrices[drawn.name]
        return image.transform(image.size, affine, matrix, drawn.filter, fillcolor=drawn.fill)
    ways: dict[str, Callable[[], Image.Image]] = {
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "rotate": lambda: image.rotate(amount, drawn.filter, fillcolor=drawn.fill),
        "posterize": lambda: ImageOps.posterize(image, max(1, int(amount))),
        "solarize": lambda: ImageOps.solarize(image, int(amount)),
        "solarize_add": lambda: image.point(table * 3),
        "colour": lambda: ImageEnhance.Color(image).enhance(amount),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(amount),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(amount),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(amount),
    }
    return ways[drawn.name]()


def view_with_pillow(config: SupervisedViewsConfig, record: ImageRecord, key: int) -> None:
    """Make the same view with Pillow alone: decode all, cut, resize, augment, channels first."""
    assert isinstance(record.data, bytes)
    image = Image.open(io.BytesIO(record.data)).convert("RGB")
    scale, ratio, px = config.crop_scale, config.crop_ratio, config.image_px
    box = random_box(image.height, image.width, scale, ratio, Stream(key))
    cut = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    image = cut.resize((px, px), Filter.BICUBIC)
    for drawn in config.augmentation().draw(Stream(fold(key, "augment"))):
        image = with_pillow(image, drawn)
    np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def measure(sides: Sequence[Work], repeats: int) -> list[float]:
    """Return the median processor seconds of each side, interleaved after one warm-up."""
    seconds: list[list[float]] = [[] for _ in sides]
    for repeat in range(repeats + 1):
        for side, work in enumerate(sides):
            start = time.process_time()
            work()
            if repeat:
                seconds[side].append(time.process_time() - start)
    return [statistics.median(times) for times in seconds]


def show(name: str, seconds: Sequence[float], images: int) -> None:
    """Print one line of the table."""
    ours, theirs = (1000 * value / images for value in seconds)
    print(f"{name:<34}{ours:>10.3f}{theirs:>10.3f}{theirs / ours:>8.2f}")


def measure_operations(views: list[npt.NDArray[np.uint8]], repeats: int) -> None:
    """Measure each operation on images that are decoded already, and the mean of all."""
    pictures = [Image.fromarray(np.ascontiguousarray(v.transpose(1, 2, 0))) for v in views]
    total = np.zeros(2)
    for name in CHOICES:
        amount = amount_of(name, 0.9, SETTINGS, Stream(1))
        drawn = Drawn(name, amount, Filter.BICUBIC, FILL)

        def ours(drawn: Drawn = drawn) -> None:
            for view in views:
                apply(view, [drawn])

        def theirs(drawn: Drawn = drawn) -> None:
            for picture in pictures:
                with_pillow(picture, drawn)

        seconds = measure([ours, theirs], repeats)
        total += seconds
        show(name, seconds, len(views))
    show("mean of the operations", (total / len(CHOICES)).tolist(), len(views))


def measure_views(records: list[ImageRecord], px: int, repeats: int) -> None:
    """Measure whole views in the worker, and the device's part of a batch."""
    for name, changes in (("crop alone", PLAIN), ("crop and rand-m9-mstd0.5-inc1", {})):
        config = SupervisedViewsConfig.from_dict({"image_px": px, **changes})
        view = config.build("train")

        def ours(view: Transform = view) -> None:
            for key, record in enumerate(records):
                view.sample(record, key)

        def theirs(config: SupervisedViewsConfig = config) -> None:
            for key, record in enumerate(records):
                view_with_pillow(config, record, key)

        show(name, measure([ours, theirs], repeats), len(records))
    print(f"\n{'the batched part, on this CPU':<34}{'ms':>10}")
    off: dict[str, Any] = {"erase_probability": 0.0, "mixup": 0.0, "cutmix": 0.0}
    for name, changes in (("flip, normalise", off), ("erase and mix too", {})):
        view = SupervisedViewsConfig.from_dict({"image_px": px, **changes}).build("train")
        samples = [view.sample(record, key) for key, record in enumerate(records)]
        places = np.arange(len(records))
        batch = stack(samples, places, places)

        def work(view: Transform = view, batch: Batch = batch) -> None:
            view.batch(batch)

        (seconds,) = measure([work], repeats)
        print(f"{name:<34}{1000 * seconds / len(records):>10.3f}")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = [
        ImageRecord(noise_jpeg(options.height, options.width, key), 0, f"noise {key}")
        for key in range(options.images)
    ]
    plain = SupervisedViewsConfig.from_dict({"image_px": options.px, **PLAIN}).build("train")
    views = [plain.sample(record, key)["image"] for key, record in enumerate(records)]
    print(
        f"{'ms per image of ' + str(options.px) + ' px':<34}{'here':>10}{'Pillow':>10}{'ratio':>8}"
    )
    measure_operations(views, options.repeats)
    print()
    measure_views(records, options.px, options.repeats)


if __name__ == "__main__":
    main()
