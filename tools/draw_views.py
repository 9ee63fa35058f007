"""Draw what training sees of a few images: the picture in docs/guide.md.

python tools/draw_views.py IMAGE_FOLDER OUTPUT.png [views.KEY=VALUE ...]

The folder holds ``train`` and ``test`` with one folder of images per class, as for
``data.kind=image_folder``; the values are those of ``views.kind=supervised_views``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quadriga.contracts import Transform, stack
from quadriga.data.images.folder import ImageFolderConfig
from quadriga.data.views.supervised import SupervisedViewsConfig
from quadriga.evaluation.reconstruction import draw_grid, save_picture
from quadriga.randomness import Stream, fold

ROWS = 4
QUIET: dict[str, Any] = {"erase_probability": 0.0, "mixup": 0.0, "cutmix": 0.0}
COLUMNS: tuple[tuple[str, str, dict[str, Any]], ...] = (
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


def pixels(images: Tensor, config: SupervisedViewsConfig) -> npt.NDArray[np.uint8]:
    """Return normalised images as uint8 (images, height, width, 3)."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    levels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()


def main(folder: Path, output: Path, words: list[str]) -> None:
    """Draw the picture."""
    values = dict(word.removeprefix("views.").partition("=")[::2] for word in words)
    base = SupervisedViewsConfig(image_px=32, crop_scale=(0.35, 1.0)).override(values)
    dataset = ImageFolderConfig(root=folder).build("train")
    index = np.array([Stream(fold("images", i)).integer(len(dataset)) for i in range(ROWS)])
    columns = []
    for place, (title, split, fields) in enumerate(COLUMNS):
        config = base.override(fields)
        view: Transform = config.build("train" if split == "train" else "test")
        key = np.array([fold("views", place, i) for i in range(ROWS)], np.uint64).view(np.int64)
        records = [dataset.read(int(i)) for i in index]
        samples = [view.sample(r, int(k)) for r, k in zip(records, key, strict=True)]
        columns.append((title, pixels(view.batch(stack(samples, index, key))["image"], config)))
    save_picture(draw_grid(columns), output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
