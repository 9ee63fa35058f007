"""TensorBoard event files in the run directory."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from PIL import Image

from quadriga.contracts.logging import Logger, LoggerConfig, LoggerContext


@final
class TensorboardConfig(LoggerConfig):
    """Event files in ``WORK_DIR/tensorboard``."""

    def open(self, context: LoggerContext) -> Tensorboard:
        """Continue the event files; TensorBoard hides earlier records of repeated steps."""
        return Tensorboard(context)


@final
class Tensorboard(Logger):
    """Writes each metric as a scalar."""

    def __init__(self, context: LoggerContext) -> None:
        """Keep the run; the event file is opened by the first record."""
        self._context = context

    @functools.cached_property
    def _writer(self) -> Any:
        # TensorBoard takes half a second to import, which the first step need not wait for.
        from torch.utils.tensorboard import SummaryWriter

        folder = str(self._context.folder / "tensorboard")
        return SummaryWriter(folder, purge_step=self._context.start + 1)

    def log(self, record: Mapping[str, float], step: int) -> None:
        """Add a scalar for each metric but ``samples``."""
        for name, value in record.items():
            if name != "samples":
                self._writer.add_scalar(name, value, step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Add an image."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the event file, if there is one."""
        if "_writer" in vars(self):
            self._writer.close()
