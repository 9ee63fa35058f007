"""Decode, crop and resize JPEGs: TurboJPEG with torch's resize beside Pillow alone.

    python benchmarks/image_decoding.py [--images 32] [--repeats 9] [--width 500] [--height 375]

One core. Both sides take the same random crops of the same images, made from noise with a
natural spectrum, to 224 x 224 with an antialiased bicubic filter. The repeats are interleaved, so
that whatever else the machine does meets both; the ratio is of the medians of the repeats.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from quadriga.data.images.record import ImageRecord
from quadriga.data.views.crops import ImageViewsConfig, random_box
from quadriga.randomness import Stream, fold

VIEWS = ImageViewsConfig()


def noise_jpeg(height: int, width: int, key: int) -> bytes:
    """Return a JPEG of noise whose amplitude falls as 1 / frequency, as in photographs."""
    rows = np.fft.fftfreq(height)[:, None]
    frequency = np.hypot(rows, np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    channels = []
    for channel in range(3):
        angle = _uniforms(fold(key, channel), frequency.shape) * 2 * np.pi
        plane = np.fft.irfft2(np.exp(1j * angle) / frequency, (height, width))
        channels.append(plane / plane.std() * 50 + 128)
    pixels = np.stack(channels, -1).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def _uniforms(key: int, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    stream = Stream(key)
    count = int(np.prod(shape))
    return np.fromiter((stream.uniform() for _ in range(count)), float, count).reshape(shape)


def with_quadriga(records: list[ImageRecord]) -> None:
    """Make one training view of each image through the fast path."""
    view = VIEWS.build("train")
    for key, record in enumerate(records):
        view.sample(record, key)


def with_pillow(records: list[ImageRecord]) -> None:
    """Make the same views with Pillow alone: decode all, cut, resize, channels first."""
    px = VIEWS.image_px
    for key, record in enumerate(records):
        if not isinstance(record.data, bytes):
            raise TypeError("the benchmark decodes files")
        image = Image.open(io.BytesIO(record.data)).convert("RGB")
        box = random_box(image.height, image.width, VIEWS.crop_scale, VIEWS.crop_ratio, Stream(key))
        cut = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        resized = cut.resize((px, px), Image.Resampling.BICUBIC)
        np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def measure(
    sides: dict[str, Callable[[list[ImageRecord]], None]],
    records: list[ImageRecord],
    repeats: int,
) -> dict[str, list[float]]:
    """Return processor seconds of each side, one per repeat, interleaved after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, run in sides.items():
            start = time.process_time()
            run(records)
            if repeat:
                seconds[name].append(time.process_time() - start)
    return seconds


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = [
        ImageRecord(noise_jpeg(options.height, options.width, key), None, f"noise {key}")
        for key in range(options.images)
    ]
    seconds = measure(
        {"TurboJPEG + torch": with_quadriga, "Pillow": with_pillow}, records, options.repeats
    )
    size = statistics.mean(len(r.data) for r in records) / 1024
    print(f"{options.images} JPEGs of {options.width}x{options.height}, {size:.0f} KiB on average")
    print(f"{'path':<20}{'images / CPU s':>16}{'slowest':>10}{'fastest':>10}{'ratio':>8}")
    base = statistics.median(seconds["Pillow"])
    for name, times in seconds.items():
        rates = [options.images / t for t in (statistics.median(times), max(times), min(times))]
        ratio = base / statistics.median(times)
        print(f"{name:<20}{rates[0]:>16.0f}{rates[1]:>10.0f}{rates[2]:>10.0f}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
