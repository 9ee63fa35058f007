"""Small images for the tests of the data room, made from a seed."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def noise(height, width, seed=0, cells=4):
    """Smooth noise, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // cells), max(2, width // cells), 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels, kind="JPEG", **options):
    """An image file's bytes; `pixels` is an array or a Pillow image."""
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    out = io.BytesIO()
    options = {"quality": 95, "subsampling": 0, **options} if kind == "JPEG" else options
    image.save(out, kind, **options)
    return out.getvalue()


def write(path: Path, data: bytes):
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_classes(root: Path, classes, count, seed=0, size=(13, 17)):
    """``root/CLASS/N.jpg`` for each class."""
    for c, name in enumerate(classes):
        for i in range(count):
            write(root / name / f"{i:03d}.jpg", encoded(noise(*size, seed=seed + 100 * c + i)))


def write_tar(path: Path, members):
    """A tar file of (name, bytes) members, in that order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
