"""The images, and the view of an image, of a config's ``train_dataloader``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from quadriga.errors import UserError

DATASET = "train_dataloader.dataset"
_ORDER = ("LoadImageFromFile", "RandomResizedCrop", "RandomFlip", "PackSelfSupInputs")
_SAME = {"MAERandomResizedCrop": "RandomResizedCrop", "PackInputs": "PackSelfSupInputs"}


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


def views_of(pipeline: Sequence[Mapping[str, Any]], pixels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's ``views``: a random resized crop and a flip, then normalised.

    Args:
        pipeline: The transforms of an image, each of which the table knows.
        pixels: The config's ``data_preprocessor``.

    Raises:
        UserError: The transforms are others, or in another order.
    """
    kinds = [_SAME.get(step["type"], step["type"]) for step in pipeline]
    flips = "RandomFlip" in kinds
    wanted = [kind for kind in _ORDER if kind != "RandomFlip" or flips]
    if kinds != wanted:
        raise UserError(
            f"{DATASET}.pipeline must be {', '.join(_ORDER)}, RandomFlip or not, but is "
            f"{', '.join(kinds) or 'empty'}; change it"
        )
    crop, is_mae = pipeline[1], pipeline[1]["type"] == "MAERandomResizedCrop"
    flip = pipeline[2].get("prob", 0.0) if flips else 0.0
    values: dict[str, Any] = {
        "kind": "image_views",
        "image_px": _side(crop),
        "crop_scale": _pair(crop, "scale", "crop_ratio_range", (0.08, 1.0)),
        "crop_ratio": _pair(crop, "ratio", "aspect_ratio_range", (3 / 4, 4 / 3)),
        "interpolation": crop.get("interpolation", "bicubic" if is_mae else "bilinear"),
        "flip_probability": flip or 0.0,
    }
    for name in ("mean", "std"):
        given = pixels.get(name)
        neutral = 0.0 if name == "mean" else 1.0
        values[name] = [value / 255 for value in given] if given else [neutral / 255] * 3
    return values


def _side(crop: Mapping[str, Any]) -> int:
    size = crop.get("size", crop.get("scale_size"))
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int):
        raise UserError(
            f"{DATASET}.pipeline.1.size must be the side of a square view, but is {size}; set it"
        )
    return sides[0]


def _pair(
    crop: Mapping[str, Any], name: str, other: str, default: tuple[float, float]
) -> list[float]:
    found = crop.get(name, crop.get(other, default))
    if not isinstance(found, list | tuple) or len(found) != 2:
        raise UserError(
            f"{DATASET}.pipeline.1.{name} must be two numbers, but is {found}; set '({default[0]},"
            f"{default[1]})'"
        )
    return list(found)
