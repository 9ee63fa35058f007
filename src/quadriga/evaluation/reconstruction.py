"""A picture of a masked autoencoder's reconstructions, and their mean squared error.

The picture is a grid of images with column titles, legible on light and on dark pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, final, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from quadriga.contracts import (
    Batch,
    EvaluationContext,
    EvaluationResult,
    Evaluator,
    EvaluatorConfig,
    Transform,
)
from quadriga.data.reading.loader import sequential
from quadriga.distributed.collectives import from_main
from quadriga.distributed.environment import DistEnv
from quadriga.errors import UserError
from quadriga.evaluation.parts.features import evaluation_mode
from quadriga.randomness import fold, shuffled

if TYPE_CHECKING:
    from PIL import ImageFont

TILE_PX = 128
"""Width to which small images are enlarged, by the nearest integer factor."""
PANEL_ROWS = 4
"""More images than this are drawn in two panels side by side."""
GAP_PX = 8
PANEL_GAP_PX = 32
TITLE_PX = 34
TITLE_COLOUR = (128, 134, 145, 255)
"""A grey with contrast on white and on black; the background is transparent."""

Pixels = npt.NDArray[np.uint8]


def draw_grid(columns: Sequence[tuple[str, Pixels]]) -> Image.Image:
    """Draw one row per image and one titled column per entry; many rows form two panels.

    Args:
        columns: Title and images, uint8 (images, height, width, 3); all of one shape.

    Returns:
        The RGBA picture, with a transparent background.
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
    from PIL import ImageDraw  # with its fonts a tenth of a second at the start of each run

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
    """Write `picture` as PNG atomically: under a temporary name, which is then renamed.

    Raises:
        UserError: The file cannot be written.
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
    """Return the font in the largest size from 9 to 16 pixels at which the title fits, else 9."""
    from PIL import ImageFont

    for size in range(16, 8, -1):
        font = ImageFont.load_default(size)
        if font.getlength(title) <= width:
            return font
    return font


FILE = "reconstruction.png"
TITLES = ("original", "masked", "reconstruction", "with visible")


@runtime_checkable
class Reconstructor(Protocol):
    """An objective that reconstructs masked images."""

    def reconstruct(self, batch: Batch) -> Sequence[Tensor]:
        """Return the masked images, the reconstructions and both together.

        Args:
            batch: Has normalised images ``image`` and the samples' ``key``.

        Returns:
            Three floats (batch, 3, height, width) in the space of ``image``; in the third the
            visible pixels are those of the image.
        """
        ...


@final
class ReconstructionConfig(EvaluatorConfig):
    """A picture of reconstructed test images."""

    images: int = Field(8, ge=1, le=2**30)
    """Number of test images in the picture."""

    def build(self) -> Reconstruction:
        """Make the evaluator."""
        return Reconstruction(self)


@final
class Reconstruction(Evaluator):
    """Draws ``reconstruction.png`` and measures the error on the pixels that were masked."""

    def __init__(self, config: ReconstructionConfig) -> None:
        """Keep the config."""
        self.config = config

    def check(self, context: EvaluationContext) -> None:
        """Check that the objective reconstructs images and that the test split has some.

        Raises:
            UserError: The objective cannot reconstruct, or there is no test image.
        """
        _reconstructor(context)

    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Reconstruct test images chosen by the seed: the same ones at every evaluation.

        The metric ``masked_mse`` is the mean squared error over masked pixels and colours, in
        units of the normalised image.

        Raises:
            UserError: The objective does not reconstruct, there is no test image, or the
                picture cannot be written.
        """
        objective = _reconstructor(context)
        columns, chosen, error = self._reconstructed(objective, context)
        if context.env.is_main:
            low, high = pixel_range(context.transform, columns[0])
            pixels = [to_pixels(column, low, high) for column in columns]
            grid = draw_grid(list(zip(TITLES, pixels, strict=True)))
        from_main(lambda: save_picture(grid, context.output / FILE), context.env)
        return EvaluationResult(
            protocol="reconstruction",
            metrics={"masked_mse": error},
            pictures={FILE: _caption(len(chosen))},
            details={"images": len(chosen), "indices": chosen},
        )

    def _reconstructed(
        self, objective: Reconstructor, context: EvaluationContext
    ) -> tuple[list[Tensor], list[int], float]:
        """Return the picture's columns, the images' indices and the masked mean squared error.

        Every rank reconstructs all images: they are few, and a sharded model needs every rank.
        """
        dataset = context.data("test")
        total = len(dataset)
        positions = np.arange(min(self.config.images, total))
        chosen = np.sort(shuffled(positions, total, fold(context.seed, "reconstruction")))
        alone = DistEnv(0, 1, 0, 1, context.env.device)
        errors = torch.zeros(2, dtype=torch.float64, device=context.env.device)
        parts: list[list[Tensor]] = []
        for batch in sequential(
            dataset,
            context.transform,
            chosen,
            batch_size=8,
            env=alone,
            workers=0,
            warn=context.warn,
        ):
            images = batch["image"]
            with context.reduced_precision():
                masked, filled, combined = _reconstruct(objective, batch)
            errors += masked_error(images, masked, combined)
            parts.append([images, masked, filled, combined])
            context.report_progress(
                "reconstruction", sum(len(part[0]) for part in parts), len(chosen)
            )
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        squares, count = errors.tolist()
        return columns, chosen.tolist(), squares / max(count, 1.0)


def _reconstructor(context: EvaluationContext) -> Reconstructor:
    objective = context.objective
    if not isinstance(objective, Reconstructor):
        name = type(objective).__name__
        raise UserError(
            f"reconstruction needs an objective that can reconstruct images, but {name}"
            " cannot; leave reconstruction out"
        )
    if len(context.data("test")) == 0:
        raise UserError(
            "reconstruction needs at least 1 test image, but the test split is empty; point"
            " data at a split with images"
        )
    return objective


def _caption(images: int) -> str:
    noun = "test image" if images == 1 else "test images"
    return (
        f"{images} {noun}: the original, what the encoder sees, what the decoder returns, and"
        " the decoder's patches beside the visible ones"
    )


def _reconstruct(objective: Reconstructor, batch: Batch) -> Sequence[Tensor]:
    if not isinstance(objective, nn.Module):
        raise TypeError(f"{type(objective).__name__} is not a module")
    with evaluation_mode(objective), torch.no_grad():
        return [images.float() for images in objective.reconstruct(batch)]


def masked_error(
    images: Float[Tensor, "batch colours height width"],
    masked: Float[Tensor, "batch colours height width"],
    combined: Float[Tensor, "batch colours height width"],
) -> Float[Tensor, "2"]:
    """Sum the squared error over the masked pixels, and count them.

    A pixel is masked where the masked image or the combination differs from the original in any
    colour; where neither does, the error is zero.

    Args:
        images: The originals.
        masked: The originals with masked pixels blanked.
        combined: Reconstructed where masked, original elsewhere.

    Returns:
        float64 (sum of squares, number of values).
    """
    hidden = ((masked != images) | (combined != images)).any(dim=1)
    squares = (combined.double() - images.double()).square().sum()
    return torch.stack([squares, hidden.sum().double() * images.shape[1]])


def pixel_range(
    transform: Transform, images: Float[Tensor, "batch 3 height width"]
) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """Return the normalised values of black and of white.

    Args:
        transform: An evaluation transform of uint8 images; its normalisation is affine.
        images: Normalised images, for the size and the device.

    Returns:
        Two float tensors, one value per colour.
    """
    shape = (2, *images.shape[1:])
    extremes = torch.zeros(shape, dtype=torch.uint8, device=images.device)
    extremes[1] = 255
    numbers = torch.zeros(2, dtype=torch.int64, device=images.device)
    done = transform.batch({"image": extremes, "index": numbers, "key": numbers.clone()})["image"]
    black, white = done.float()[:, :, :1, :1]
    return black, white


def to_pixels(
    images: Float[Tensor, "batch 3 height width"],
    black: Float[Tensor, "3 1 1"],
    white: Float[Tensor, "3 1 1"],
) -> Pixels:
    """Convert normalised images to uint8 (batch, height, width, 3), clipped to [0, 255]."""
    shades = ((images - black) / (white - black)).clamp(0, 1).mul(255).round()
    return shades.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
