"""Two views of an image as SimCLR makes them: this project beside torchvision's chain on Pillow.

    python benchmarks/two_view_pipeline.py [--photos FILE.tar.gz] [--small FILE.tar.gz] [--px 224]

One core. All sides make the same views with the same draws, from the encoded file to normalised
float32: crop, mirror, jitter, grey, blur. The plain side does it as torchvision's transforms do on
a Pillow image, written here with Pillow's own functions. The others are ``views.kind=multi_crop``
with ``on=workers`` and with ``on=device``: there the processor's part alone, where a GPU makes the
views, and all of it on this core. The repeats are interleaved, so that whatever else the machine
does meets all sides; the ratio is of the medians of the repeats. Without an archive of images
(``--photos``, for views of ``--px``; ``--small``, for views of 32 px) noise is used.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from image_decoding import noise_jpeg
from quadriga.contracts import Batch, Transform, stack
from quadriga.data.images.record import ImageRecord
from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.data.views.policies import ViewDraws
from quadriga.distributed.allocator import keep_freed_memory

ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}
Work = Callable[[], object]


def plain_view(image: Image.Image, drawn: ViewDraws, config: MultiCropConfig) -> Tensor:
    """Make one view as torchvision's transforms do."""
    box, px = drawn.box, config.image_px
    cut = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    image = cut.resize((px, px), Image.Resampling.BICUBIC)
    if drawn.flipped:
        image = ImageOps.mirror(image)
    for number in range(len(drawn.blends) + 1):
        if drawn.hue and number == drawn.before_hue:
            hue, saturation, value = image.convert("HSV").split()
            turned = np.asarray(hue) + np.array(int(drawn.hue * 255)).astype(np.uint8)
            image = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
        if number < len(drawn.blends):
            name, factor = drawn.blends[number]
            image = ENHANCERS[name](image).enhance(factor)
    if drawn.grey:
        image = Image.merge("RGB", [image.convert("L")] * 3)
    if drawn.sigma:
        image = image.filter(ImageFilter.GaussianBlur(drawn.sigma))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def plain_sample(record: ImageRecord, config: MultiCropConfig, key: int) -> list[Tensor]:
    """Decode one image and make its views."""
    data = record.data
    loaded = Image.open(io.BytesIO(data)) if isinstance(data, bytes) else Image.fromarray(data)
    image = loaded.convert("RGB")
    draws = config.groups[0].draw(image.height, image.width, key, config)
    return [plain_view(image, drawn, config) for drawn in draws]


def images_of(archive: Path | None, count: int, px: int) -> list[ImageRecord]:
    """Return the first images of an archive, or noise."""
    if archive is None:
        size = (375, 500) if px > 64 else (px, px)
        return [ImageRecord(noise_jpeg(*size, key), None, f"noise {key}") for key in range(count)]
    records = []
    with tarfile.open(archive) as members:
        for member in itertools.islice((m for m in members if m.isfile()), 20 * count):
            file = members.extractfile(member)
            if member.name.endswith((".jpg", ".jpeg", ".png")) and file is not None:
                records.append(ImageRecord(file.read(), None, member.name))
    return records[:: max(1, len(records) // count)][:count]


def measure(sides: Sequence[Work], repeats: int) -> list[list[float]]:
    """Return processor seconds of each side, one per repeat, interleaved after one warm-up."""
    seconds: list[list[float]] = [[] for _ in sides]
    for repeat in range(repeats + 1):
        for side, work in enumerate(sides):
            start = time.process_time()
            work()
            if repeat:
                seconds[side].append(time.process_time() - start)
    return seconds


def batch_of(view: Transform, records: list[ImageRecord]) -> Batch:
    """Return the samples of a worker as a batch."""
    samples = [view.sample(record, key) for key, record in enumerate(records)]
    places = np.arange(len(records))
    return stack(samples, places, places)


def compare(title: str, records: list[ImageRecord], config: MultiCropConfig, repeats: int) -> None:
    """Measure all sides on the same images and print the table."""
    workers = config.build("train")
    device = config.override({"on": "device"}).build("train")

    def plain() -> None:
        torch.stack([torch.stack(plain_sample(r, config, key)) for key, r in enumerate(records)])

    sides = {
        "plain": plain,
        "in workers": lambda: workers.batch(batch_of(workers, records)),
        "on a device: a worker's part": lambda: batch_of(device, records),
        "on this core as the device: all": lambda: device.batch(batch_of(device, records)),
    }
    seconds = measure(list(sides.values()), repeats)
    print(f"{title:<34}{'images/s/core':>14}{'ratio':>8}{'quartiles':>16}")
    for name, times in zip(sides, seconds, strict=True):
        ratios = [base / own for base, own in zip(seconds[0], times, strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        rate = len(records) / statistics.median(times)
        print(f"{name:<34}{rate:>14.0f}{ratio:>8.2f}{low:>8.2f} to {high:.2f}")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--small", type=Path)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--px", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for archive, px in ((options.photos, options.px), (options.small, 32)):
        records = images_of(archive, options.images, px)
        scale = 1.0 if px == 32 else 1.5
        config = MultiCropConfig(image_px=px, crop_scale=(0.08, 1.0), picture_scale=scale)
        compare(f"two views of {px} px", records, config, options.repeats)


if __name__ == "__main__":
    main()
