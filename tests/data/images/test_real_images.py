"""Real photographs and real small images, where the shared data is at hand."""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quadriga.data.images.decode import Box, OpenedImage
from quadriga.data.images.folder import ImageFolderConfig
from quadriga.data.images.record import ImageRecord
from quadriga.data.views.crops import ImageViewsConfig


def members(archive: Path, suffix: str, count: int) -> list[tuple[str, bytes]]:
    """Return the first files of an archive, without unpacking the rest of it."""
    with tarfile.open(archive, "r|gz") as stream:
        files = (m for m in stream if m.isfile() and m.name.endswith(suffix))
        found = []
        for member in itertools.islice(files, count):
            extracted = stream.extractfile(member)
            assert extracted is not None
            found.append((member.name, extracted.read()))
    return found


def test_photographs_decode_as_pillow_decodes_them(shared_data: Path) -> None:
    photographs = members(shared_data / "flickr1k.tar.gz", ".jpg", 40)
    assert len(photographs) == 40
    for name, data in photographs:
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        height, width = expected.shape[:2]
        opened = OpenedImage(ImageRecord(data, None, name))
        assert np.array_equal(opened.crop(Box(0, 0, height, width)), expected), name


def test_a_folder_of_real_images_becomes_samples(shared_data: Path, tmp_path: Path) -> None:
    for name, data in members(shared_data / "cifar10.tar.gz", ".jpg", 60):
        path = tmp_path / "train" / name.split("/")[-2] / name.split("/")[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    dataset = ImageFolderConfig(root=tmp_path).build("train")
    assert len(dataset) == 60
    views = ImageViewsConfig(image_px=32, test_crop_fraction=1.0).build("test")
    for index in range(len(dataset)):
        record = dataset.read(index)
        sample = views.sample(record, 0)
        expected = np.asarray(Image.open(io.BytesIO(record.data)).convert("RGB"))
        assert np.array_equal(sample["image"].transpose(1, 2, 0), expected)
        assert sample["label"] == record.label
    with pytest.raises(IndexError):
        dataset.read(60)
