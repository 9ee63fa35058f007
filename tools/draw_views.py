"""Draw what training sees of a few images: the pictures in docs/guide.md.

python tools/draw_views.py IMAGE_FOLDER OUTPUT.png [views.KEY=VALUE ...]

The folder holds ``train`` and ``test`` with one folder of images per class, as for
``data.kind=image_folder``; the values are those of ``views.kind=supervised_views``, or, with
``kind=multi_crop`` among them, of that kind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quadriga.contracts import Batch, Split, stack
from quadriga.data.images.folder import ImageFolderConfig
from quadriga.data.images.record import ImageRecord
from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.data.views.supervised import SupervisedViewsConfig
from quadriga.evaluation.reconstruction import draw_grid, save_picture
from quadriga.randomness import Stream, fold

ROWS = 4
QUIET: dict[str, Any] = {"erase_probability": 0.0, "mixup": 0.0, "cutmix": 0.0}
COLUMNS: tuple[tuple[str, Split, dict[str, Any]], ...] = (
    ("image", "test", {"test_crop_fraction": 1.0}),
    ("crop", "train", {**QUIET, "augment": "none", "color_jitter": 0.0}),
    ("RandAugment", "train", QUIET),
    ("again", "train", QUIET),
    ("3-Augment", "train", {**QUIET, "augment": "three_augment", "color_jitter": 0.3}),
    ("erased", "train", {**QUIET, "erase_probability": 1.0}),
    ("mixup", "train", {**QUIET, "mixup": 0.8, "mix_mode": "elem"}),
    ("cutmix", "train", {**QUIET, "cutmix": 1.0, "mix_mode": "elem"}),
)
"""Title, split and fields of each column."""


MULTI_CROP_COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("crop", "none", "crops", 0),
    ("SimCLR", "simclr", "crops", 0),
    ("again", "simclr", "crops", 1),
    ("BYOL, first", "byol", "crops", 0),
    ("BYOL, second", "byol", "crops", 1),
    ("DINO, small", "dino", "local_crops", 0),
    ("again", "dino", "local_crops", 1),
)
"""Title, `augmentation`, tensor and number of each view."""
Views = SupervisedViewsConfig | MultiCropConfig
Column = tuple[str, npt.NDArray[np.uint8]]


def pixels(images: Tensor, config: Views) -> npt.NDArray[np.uint8]:
    """Return normalised images as uint8 (images, height, width, 3)."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    levels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()


def batch_of(config: Views, split: Split, records: list[ImageRecord], place: int) -> Batch:
    """Return the batch of the records, by the keys of a column."""
    view = config.build(split)
    keys = [fold("views", place, number) for number in range(len(records))]
    samples = [view.sample(record, key) for record, key in zip(records, keys, strict=True)]
    key = np.array(keys, np.uint64).view(np.int64)
    return view.batch(stack(samples, np.arange(len(records)), key))


def supervised(records: list[ImageRecord], values: dict[str, str]) -> Iterator[Column]:
    """Yield the columns of the supervised views."""
    base = SupervisedViewsConfig(image_px=32, crop_scale=(0.35, 1.0)).override(values)
    for place, (title, split, fields) in enumerate(COLUMNS):
        config = base.override(fields)
        yield title, pixels(batch_of(config, split, records, place)["image"], config)


def multi_crop(records: list[ImageRecord], values: dict[str, str]) -> Iterator[Column]:
    """Yield the columns of the views of self-supervised methods."""
    base = MultiCropConfig(image_px=32, local_crops=2, local_px=32).override(values)
    whole = base.override({"test_crop_fraction": 1.0})
    yield "image", pixels(batch_of(whole, "test", records, 0)["image"], base)
    for title, preset, name, number in MULTI_CROP_COLUMNS:
        config = base.override({"augmentation": preset})
        yield title, pixels(batch_of(config, "train", records, 0)[name][:, number], config)


def main(folder: Path, output: Path, words: list[str]) -> None:
    """Draw the picture."""
    values = dict(word.removeprefix("views.").partition("=")[::2] for word in words)
    columns = multi_crop if values.pop("kind", None) == "multi_crop" else supervised
    dataset = ImageFolderConfig(root=folder).build("train")
    index = [Stream(fold("images", i)).integer(len(dataset)) for i in range(ROWS)]
    records = [dataset.read(i) for i in index]
    save_picture(draw_grid(list(columns(records, values))), output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
