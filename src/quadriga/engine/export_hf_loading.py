"""Loading an exported folder with transformers, as its users do."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quadriga.errors import UserError

WEIGHTS = "model.safetensors"
"""The file of a folder that holds the tensors."""


def load_with_transformers(cls: Any, folder: Path, **options: bool) -> Any:
    """Load a folder as its users do; nothing may be missing and nothing left over."""
    model, info = cls.from_pretrained(
        folder, output_loading_info=True, local_files_only=True, **options
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise UserError(f"transformers reports {kind}: {', '.join(map(str, info[kind]))}")
    return model.eval()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Leave out the bars and advice that transformers prints while loading."""
    try:
        from transformers.utils import logging
    except ImportError:
        yield
        return
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
