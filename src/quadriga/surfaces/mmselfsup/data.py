"""The images of a config's ``train_dataloader``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from quadriga.errors import UserError

DATASET = "train_dataloader.dataset"


def data_of(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's ``data``: a list of images, or all images below a folder.

    Raises:
        UserError: The folder is not named.
    """
    root = dataset.get("data_root") or ""
    prefix = dataset.get("data_prefix") or ""
    prefix = prefix.get("img_path", "") if isinstance(prefix, Mapping) else prefix
    folder = os.path.join(root, prefix)
    if not folder:
        raise UserError(f"{DATASET}.data_root must be a folder, but is empty; set it")
    named = dataset.get("ann_file") or ""
    files = {"files": os.path.join(root, named)} if named else {}
    return {"kind": "image_list", "root": folder, "holdout": 0, **files}
