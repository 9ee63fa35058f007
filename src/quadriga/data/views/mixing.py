"""Mixup (Zhang et al., arXiv:1710.09412) and CutMix (Yun et al., arXiv:1905.04899) on the device.

Samples 2i and 2i + 1 of a micro-batch are mixed with each other. If all micro-batches have even
sizes, the pairs do not depend on how the step's batch is divided. The last sample of an odd number
is not mixed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from quadriga.contracts import Batch
from quadriga.data.views.erasing import Boxes, inside, whole
from quadriga.randomness import fold, uniform_rows

Mode = Literal["batch", "pair", "elem"]
_SALT = fold("mix")
_QUANTILES = 1 << 16
Uniforms = Float[Tensor, "batch draws"]


@dataclass(frozen=True)
class Mixing:
    """The parameters of mixup and CutMix."""

    mixup: float
    """Both parameters of the beta distribution of mixup's share; 0 for no mixup."""
    cutmix: float
    """Both parameters of the beta distribution of CutMix's share; 0 for no CutMix."""
    cutmix_minmax: tuple[float, float] | None
    """Smallest and largest side of CutMix's box / the image's side, instead of the distribution."""
    probability: float
    """Probability that a unit of `mode` is mixed."""
    switch_probability: float
    """Probability of CutMix instead of mixup, if both are on."""
    mode: Mode
    """The unit that shares its random draws: a micro-batch, a pair or a sample."""

    @property
    def on(self) -> bool:
        """Whether mixup or CutMix is on."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None


def mix(batch: Batch, how: Mixing) -> Batch:
    """Mix the images of a micro-batch.

    Args:
        batch: Has ``image`` float (batch, 3, height, width), ``label`` and ``key``.
        how: The parameters; without `Mixing.on` the batch is returned unchanged.

    Returns:
        The batch with mixed ``image``, and with ``mixed_label`` int64 (batch,), the partner's
        label, and ``share`` float32 (batch,), the fraction of each image that is its own; for
        CutMix the exact fraction of the pixels.
    """
    if not how.on:
        return batch
    images, key = batch["image"], batch["key"]
    height, width = images.shape[-2:]
    places = torch.arange(len(key), device=key.device)
    partner = (places ^ 1).clamp(max=max(0, len(key) - 1))
    draws = uniform_rows(key[_owners(places, how.mode)], _SALT, 7)
    mixed = (draws[:, 0] < how.probability) & (partner != places)
    cut = mixed & _is_cut(draws, how)
    other = images[partner]
    share = torch.ones(len(key), dtype=torch.float32, device=key.device)
    if how.mixup > 0:
        share = torch.where(mixed & ~cut, beta(draws[:, 2], how.mixup), share)
        weight = share[:, None, None, None].to(images.dtype)
        images = images * weight + other * (1 - weight)
    if how.cutmix > 0 or how.cutmix_minmax is not None:
        boxes = _boxes(draws, height, width, how)
        images = torch.where(inside(boxes, height, width) & cut[:, None, None, None], other, images)
        left = height * width - boxes.height * boxes.width
        share = torch.where(cut, left.to(torch.float32) / (height * width), share)
    return {**batch, "image": images, "mixed_label": batch["label"][partner], "share": share}


def _owners(places: Int64[Tensor, " batch"], mode: Mode) -> Int64[Tensor, " batch"]:
    """Return, for each sample, the position of the sample whose key gives its draws."""
    if mode == "elem":
        return places
    return places & ~1 if mode == "pair" else torch.zeros_like(places)


def _is_cut(draws: Uniforms, how: Mixing) -> Bool[Tensor, " batch"]:
    if how.cutmix == 0 and how.cutmix_minmax is None:
        return torch.zeros_like(draws[:, 1], dtype=torch.bool)
    if how.mixup == 0:
        return torch.ones_like(draws[:, 1], dtype=torch.bool)
    return draws[:, 1] < how.switch_probability


def _boxes(draws: Uniforms, height: int, width: int, how: Mixing) -> Boxes:
    if how.cutmix_minmax is None:
        side = (1 - beta(draws[:, 2], how.cutmix)).sqrt()
        top, box_height = _about_a_centre(draws[:, 3], side, height)
        left, box_width = _about_a_centre(draws[:, 4], side, width)
    else:
        top, box_height = _within(draws[:, 3], draws[:, 5], how.cutmix_minmax, height)
        left, box_width = _within(draws[:, 4], draws[:, 6], how.cutmix_minmax, width)
    return Boxes(top, left, box_height, box_width)


def _about_a_centre(
    place: Tensor, side: Float[Tensor, " batch"], length: int
) -> tuple[Int64[Tensor, " batch"], Int64[Tensor, " batch"]]:
    """Return start and length of an interval about a uniform centre, clipped to the image."""
    half = (side * length).to(torch.int64) // 2
    middle = whole(place, length)
    start = (middle - half).clamp(min=0)
    return start, (middle + half).clamp(max=length) - start


def _within(
    place: Tensor, size: Tensor, bounds: tuple[float, float], length: int
) -> tuple[Int64[Tensor, " batch"], Int64[Tensor, " batch"]]:
    """Return start and length of an interval of uniform length that is inside the image."""
    low, high = (int(bound * length) for bound in bounds)
    stretch = low + whole(size, high - low + 1)
    return whole(place, length - stretch + 1), stretch


def beta(uniform: Float[Tensor, " batch"], alpha: float) -> Float[Tensor, " batch"]:
    """Map uniforms to the symmetric beta distribution by a table of 65,536 quantiles."""
    return _quantiles(alpha, uniform.device)[whole(uniform, _QUANTILES)]


@functools.lru_cache(maxsize=8)
def _quantiles(alpha: float, device: torch.device) -> Float[Tensor, " quantiles"]:
    from scipy import special

    middles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return torch.from_numpy(special.betaincinv(alpha, alpha, middles).astype(np.float32)).to(device)
