"""The vision transformers of the documented model-assembling command, by name."""

from __future__ import annotations

import re
from typing import NamedTuple

from quadriga.errors import UserError, did_you_mean
from quadriga.models.vit import ViTConfig


class _Size(NamedTuple):
    """The fields that the models of one family and size share."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    bias: bool = True
    """Whether query, key and value have a bias; models without it have norm_eps 1e-5, not 1e-6."""


_SIZES = {
    "vit_small": _Size(768, 8, 8, 3.0, bias=False),
    "vit_base": _Size(768, 12, 12),
    "vit_large": _Size(1024, 24, 16),
    "vit_huge": _Size(1280, 32, 16, bias=False),
    "deit_tiny": _Size(192, 12, 3),
    "deit_small": _Size(384, 12, 6),
    "deit_base": _Size(768, 12, 12),
}
"""The sizes in the reference implementation, whose vit_small is not the usual ViT-S."""

MODELS = (
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "vit_base_patch16_384",
    "vit_base_patch32_384",
    "vit_large_patch16_224",
    "vit_large_patch16_384",
    "vit_large_patch32_384",
    "vit_huge_patch14_224",
    "vit_huge_patch14_392",
    "vit_huge_patch32_384",
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "deit_base_patch16_224",
    "deit_base_patch16_384",
)

_NAME = re.compile(r"(?P<size>[a-z]+_[a-z]+)_patch(?P<patch>\d+)_(?P<image>\d+)")


def find_model(name: str) -> ViTConfig:
    """Return the model of a name, with the standard depth of that name.

    Raises:
        UserError: The name is unknown, or this command does not offer the model.
    """
    if "distilled" in name:
        raise UserError(
            f"--model {name} is not offered: its second token and second head belong to no module, "
            f"so modular training would lose them; use {name.replace('_distilled', '')}"
        )
    if "resnet" in name:
        raise UserError(
            f"--model {name} is not offered: its patches come from a convolutional network, which "
            "is no part of a module; use a model such as vit_base_patch16_224"
        )
    if name not in MODELS:
        raise UserError(
            f"--model must be one of the known, but is {name}{did_you_mean(name, MODELS)}"
        )
    found = _NAME.fullmatch(name)
    assert found is not None, name
    size = _SIZES[found["size"]]
    return ViTConfig(
        image_px=int(found["image"]),
        patch_px=int(found["patch"]),
        width=size.width,
        depth=size.depth,
        heads=size.heads,
        mlp_ratio=size.mlp_ratio,
        positions="learned",
        pool="class",
        qkv_bias=size.bias,
        norm_eps=1e-6 if size.bias else 1e-5,
    )
