"""The views of an image that a config's pipeline makes, as the engine's ``views``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quadriga.errors import UserError
from quadriga.surfaces.mmselfsup.data import DATASET

_PIPELINE = f"{DATASET}.pipeline"
_SINGLE = ("LoadImageFromFile", "RandomResizedCrop", "RandomFlip", "PackSelfSupInputs")
_SEVERAL = ("LoadImageFromFile", "MultiView", "PackSelfSupInputs")
_ORDER = (
    *("RandomResizedCrop", "ColorJitter", "RandomGrayscale"),
    *("RandomGaussianBlur", "RandomSolarize"),
)
"""The transforms of a view; a flip may be at any place after the crop."""
_SAME = {
    "MAERandomResizedCrop": "RandomResizedCrop",
    "PackInputs": "PackSelfSupInputs",
    "RandomApply": "ColorJitter",
    "GaussianBlur": "RandomGaussianBlur",
    "Solarize": "RandomSolarize",
}
_GREY = (0.114, 0.587, 0.2989)
"""Shares of blue, green and red in the grey of a pixel (ITU-R BT.601)."""

Step = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """One view: its crop, and how it is augmented."""

    crop: dict[str, Any]
    """Fields of ``views`` that all views of one size share."""
    colours: dict[str, Any]
    """Fields of `quadriga.data.views.policies.PolicyChanges`."""

    @property
    def px(self) -> int:
        """Side in pixels."""
        return int(self.crop["image_px"])


def single_view(pipeline: Sequence[Step], pixels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's ``views``: a random resized crop and a flip, then normalised.

    Args:
        pipeline: The transforms of an image, each of which the table knows.
        pixels: The config's ``data_preprocessor``.

    Raises:
        UserError: The transforms are others, or in another order.
    """
    kinds = _kinds(pipeline)
    flips = "RandomFlip" in kinds
    _require(kinds, [kind for kind in _SINGLE if kind != "RandomFlip" or flips], _PIPELINE)
    flip = pipeline[2].get("prob") if flips else None
    crop = _crop(pipeline[1], f"{_PIPELINE}.1")
    return {"kind": "image_views", **crop, "flip_probability": flip or 0.0, **normalised(pixels)}


def two_views(pipeline: Sequence[Step], pixels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's ``views``: two of one size, each with its own colours.

    Raises:
        UserError: There are others, or a transform cannot be expressed.
    """
    views = _several(pipeline)
    if len(views) != 2 or views[0].px != views[1].px:
        raise UserError(
            f"{_PIPELINE}.1.num_views must give 2 views of one size, but they are of "
            f"{', '.join(str(view.px) for view in views)} px; change it"
        )
    return _multi_crop(views, (), pixels)


def crops(pipeline: Sequence[Step], pixels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's ``views``: two large ones, and any number of equal small ones.

    Raises:
        UserError: There are others, or a transform cannot be expressed.
    """
    views = _several(pipeline)
    large, local = views[:2], views[2:]
    smaller = all(view == local[0] and view.px < large[0].px for view in local)
    if len(large) != 2 or large[0].px != large[1].px or not smaller:
        raise UserError(
            f"{_PIPELINE}.1 must give 2 large views of one size, and then small ones that are all "
            f"alike, but they are of {', '.join(str(view.px) for view in views)} px; change it"
        )
    return _multi_crop(large, local, pixels)


def normalised(pixels: Mapping[str, Any]) -> dict[str, Any]:
    """Return mean and deviation of each channel, for values from 0 to 1."""
    values = {}
    for name in ("mean", "std"):
        given = pixels.get(name)
        neutral = 0.0 if name == "mean" else 1.0
        values[name] = [value / 255 for value in given] if given else [neutral / 255] * 3
    return values


def _multi_crop(
    large: Sequence[View], local: Sequence[View], pixels: Mapping[str, Any]
) -> dict[str, Any]:
    first, second = large
    shared = ("crop_ratio", "interpolation", "flip_probability")
    for name, own in first.crop.items():
        for view in (second, *(local[:1] if name in shared else ())):
            if view.crop[name] != own:
                raise UserError(
                    f"{_PIPELINE}.1.transforms must have one {name} for all views, but has {own} "
                    f"and {view.crop[name]}; change it"
                )
    values = {"kind": "multi_crop", **first.crop, "augmentation": "none", **normalised(pixels)}
    if first.colours == second.colours and all(view.colours == first.colours for view in local):
        values["every"] = first.colours
    else:
        values |= {"first": first.colours, "second": second.colours}
        values |= {"local": local[0].colours} if local else {}
    if local:
        small = {"local_px": local[0].px, "local_scale": local[0].crop["crop_scale"]}
        values |= {"local_crops": len(local), **small}
    return values


def _several(pipeline: Sequence[Step]) -> list[View]:
    """Return the views of a pipeline with `MultiView`, in their order."""
    _require(_kinds(pipeline), list(_SEVERAL), _PIPELINE)
    path = f"{_PIPELINE}.1"
    numbers, transforms = pipeline[1].get("num_views"), pipeline[1].get("transforms")
    numbers = numbers if isinstance(numbers, list) else [numbers]
    if not all(isinstance(n, int) and 0 < n <= 64 for n in numbers):
        raise UserError(f"{path}.num_views must be numbers of views, but is {numbers}; set it")
    if not isinstance(transforms, list) or len(transforms) != len(numbers):
        raise UserError(
            f"{path}.transforms must be a pipeline for each of num_views ({len(numbers)}), but "
            f"has {len(transforms or ())}; add or remove some"
        )
    views = []
    for place, (number, steps) in enumerate(zip(numbers, transforms, strict=True)):
        views += [_view(steps, f"{path}.transforms.{place}")] * number
    return views


def _view(steps: Sequence[Step], path: str) -> View:
    kinds = _kinds(steps)
    present = [kind for kind in _ORDER if kind in kinds]
    flips = [step for step in steps if step["type"] == "RandomFlip"]
    kept = [kind for kind in kinds if kind != "RandomFlip"]
    if kinds[:1] != ["RandomResizedCrop"] or kept != present or len(flips) > 1:
        raise UserError(
            f"{path} must be {', '.join(_ORDER)}, all but the first if wanted, and RandomFlip at "
            f"any place after it, but is {', '.join(kinds) or 'empty'}; change it"
        )
    crop = _crop(steps[0], f"{path}.0")
    crop["flip_probability"] = (flips[0].get("prob") or 0.0) if flips else 0.0
    colours = {f"{name}_probability": 0.0 for name in ("jitter", "grey", "blur", "solarise")}
    for place, (kind, step) in enumerate(zip(kinds, steps, strict=True)):
        if kind in _COLOURS:
            colours |= _COLOURS[kind](step, f"{path}.{place}")
    return View(crop, colours)


def _jitter(step: Step, path: str) -> dict[str, Any]:
    probability = 1.0
    if step["type"] == "RandomApply":
        inner = step.get("transforms")
        inner = inner if isinstance(inner, list) else [inner]
        if [one["type"] for one in inner if isinstance(one, Mapping)] != ["ColorJitter"]:
            raise UserError(f"{path}.transforms must be one ColorJitter, but is {inner}; change it")
        probability, step = step.get("prob", 0.5), inner[0]
    values = {"jitter_probability": probability}
    for name in ("brightness", "contrast", "saturation", "hue"):
        strength = step.get(name, 0.0)
        if isinstance(strength, bool) or not isinstance(strength, int | float):
            raise UserError(f"{path} {name} must be a number, but is {strength}; set one")
        values[name] = float(strength)
    return values


def _grey(step: Step, path: str) -> dict[str, Any]:
    weights = step.get("channel_weights", (1.0, 1.0, 1.0))
    if tuple(weights) != _GREY:
        raise UserError(
            f"{path}.channel_weights must be {_GREY}, the usual grey, but is {tuple(weights)}; "
            "set it"
        )
    return {"grey_probability": step.get("prob", 0.1)}


def _blur(step: Step, path: str) -> dict[str, Any]:
    if step["type"] == "GaussianBlur":
        sigma = step.get("magnitude_range")
        if sigma is None or step.get("magnitude_std") != "inf":
            raise UserError(
                f"{path} must have magnitude_range and magnitude_std='inf', which draws uniformly "
                f"from it, but has {sigma} and {step.get('magnitude_std')}; set them"
            )
        return {"blur_sigma": list(sigma), "blur_probability": step.get("prob", 0.5)}
    sigma = [step.get("sigma_min"), step.get("sigma_max")]
    if None in sigma:
        raise UserError(f"{path} must have sigma_min and sigma_max, but has {sigma}; set them")
    return {"blur_sigma": sigma, "blur_probability": step.get("prob", 0.5)}


def _solarise(step: Step, path: str) -> dict[str, Any]:
    return {"solarise_probability": step.get("prob", 0.5)}


_COLOURS = {
    "ColorJitter": _jitter,
    "RandomGrayscale": _grey,
    "RandomGaussianBlur": _blur,
    "RandomSolarize": _solarise,
}
"""Transform -> its fields of a policy; one that has no effect on a view has probability 0."""


def _kinds(steps: Sequence[Step]) -> list[str]:
    names = [str(step["type"]) for step in steps]
    return [_SAME.get(name, name) for name in names]


def _require(kinds: Sequence[str], wanted: Sequence[str], path: str) -> None:
    if list(kinds) != list(wanted):
        raise UserError(
            f"{path} must be {', '.join(wanted)}, but is {', '.join(kinds) or 'empty'}; change it"
        )


def _crop(crop: Step, path: str) -> dict[str, Any]:
    is_mae = crop["type"] == "MAERandomResizedCrop"
    return {
        "image_px": _side(crop, path),
        "crop_scale": _pair(crop, path, "scale", "crop_ratio_range", (0.08, 1.0)),
        "crop_ratio": _pair(crop, path, "ratio", "aspect_ratio_range", (3 / 4, 4 / 3)),
        "interpolation": crop.get("interpolation", "bicubic" if is_mae else "bilinear"),
    }


def _side(crop: Step, path: str) -> int:
    size = crop.get("size", crop.get("scale_size"))
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int):
        raise UserError(f"{path}.size must be the side of a square view, but is {size}; set it")
    return sides[0]


def _pair(
    crop: Step, path: str, name: str, other: str, default: tuple[float, float]
) -> list[float]:
    found = crop.get(name, crop.get(other, default))
    if not isinstance(found, list | tuple) or len(found) != 2:
        raise UserError(
            f"{path}.{name} must be two numbers, but is {found}; set '({default[0]},{default[1]})'"
        )
    return list(found)
