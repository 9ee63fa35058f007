"""Put the first training pictures of the clutter data side by side, a column for each class.

python tools/draw_clutter.py docs/images/clutter.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from quadriga.data.images.clutter import ClutterConfig

ROWS, SCALE, GAP = 6, 3, 2


def main(path: Path) -> None:
    """Draw the grid."""
    data = ClutterConfig().build("train")
    columns = len(data.classes)
    pictures = [data.read(index).data for index in range(ROWS * columns)]
    framed = [np.pad(p, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for p in pictures]
    rows = [np.concatenate(framed[r * columns :][:columns], axis=1) for r in range(ROWS)]
    grid = np.concatenate(rows)[:-GAP, :-GAP]
    enlarged = grid.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    Image.fromarray(enlarged).quantize(32).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
