"""A grid of images with column titles, as one picture that reads on light and on dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from quadriga.errors import UserError

TILE_PX = 128
"""Small images are enlarged by the whole factor that comes nearest to this width."""
PANEL_ROWS = 4
"""More images than this go into two panels side by side."""
GAP_PX = 8
PANEL_GAP_PX = 32
TITLE_PX = 34
TITLE_COLOUR = (128, 134, 145, 255)
"""A grey with contrast on white and on black; the ground is transparent."""

Pixels = npt.NDArray[np.uint8]


def draw_grid(columns: Sequence[tuple[str, Pixels]]) -> Image.Image:
    """Draw one row per image and one titled column per entry, in two panels when there are many.

    Args:
        columns: Title and images, uint8 (images, height, width, 3); all of one shape.

    Returns:
        The picture, with a transparent ground.
    """
    count, height, width, _ = columns[0][1].shape
    factor = max(1, round(TILE_PX / width))
    across, down = width * factor + GAP_PX, height * factor + GAP_PX
    panels = 2 if count > PANEL_ROWS else 1
    rows = -(-count // panels)
    panel_width = len(columns) * across - GAP_PX
    size = (
        panels * panel_width + (panels - 1) * PANEL_GAP_PX,
        TITLE_PX + rows * down - GAP_PX,
    )
    picture = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    for panel in range(panels):
        start = panel * (panel_width + PANEL_GAP_PX)
        shown = slice(panel * rows, (panel + 1) * rows)
        for column, (title, images) in enumerate(columns):
            left = start + column * across
            middle = (left + width * factor / 2, TITLE_PX / 2)
            font = _fitting_font(title, width * factor)
            draw.text(middle, title, fill=TITLE_COLOUR, font=font, anchor="mm")
            for row, pixels in enumerate(images[shown]):
                # Nearest: every pixel of a small image stays a crisp square.
                enlarged = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
                picture.paste(Image.fromarray(enlarged), (left, TITLE_PX + row * down))
    return picture


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write `picture` as PNG under a temporary name and rename it, so that it is whole or absent.

    Raises:
        UserError: The folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        picture.save(temporary, format="PNG", optimize=True)
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"the picture {path} must be writable, but: {error.strerror or error}; free space"
            " or choose another folder"
        ) from error


def _fitting_font(title: str, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font in the largest size, up to 16 pixels, at which the title fits."""
    for size in range(16, 8, -1):
        font = ImageFont.load_default(size)
        if font.getlength(title) <= width:
            return font
    return font
