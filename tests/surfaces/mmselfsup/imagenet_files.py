"""Sixteen pictures laid out as data/imagenet, and options that make a documented run a second's.

python tests/surfaces/mmselfsup/imagenet_files.py FOLDER makes the pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = 16

SMALL = (
    "model.backbone.arch=tiny",
    "model.neck.embed_dim=16",
    "model.neck.decoder_embed_dim=16",
    "model.neck.decoder_depth=1",
    "model.neck.decoder_num_heads=2",
    "train_dataloader.dataset.pipeline.1.size=32",
    "train_dataloader.num_workers=0",
    "train_cfg.max_epochs=2",
)
"""Images of 32 pixels, two epochs, and a model of `TINY`."""

TINY = {"tiny": (16, 1, 2, 64)}
"""An architecture for tests: its name, and width, blocks, heads and hidden features."""


def make_imagenet(folder: Path) -> Path:
    """Write ``data/imagenet/{meta/train.txt,train/...}`` below a folder; return the folder."""
    root, source = folder / "data" / "imagenet", np.random.default_rng(0)
    lines = []
    for number in range(PICTURES):
        name = f"n0000000{number % 2}/n0000000{number % 2}_{number}.JPEG"
        path = root / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = source.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
        lines.append(f"{name} {number % 2}\n")
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta" / "train.txt").write_text("".join(lines), encoding="utf-8")
    return folder


if __name__ == "__main__":
    make_imagenet(Path(sys.argv[1]))
