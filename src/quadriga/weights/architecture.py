"""The architecture of a file of weights, from the config beside it and from its shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from quadriga.contracts import ModelConfig
from quadriga.errors import UserError
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig
from quadriga.weights.names import huggingface, timm

_HEAD_WIDTH = 64
_HEADS = {1280: 16, 1408: 16, 1664: 16}
"""Width -> heads of ViT-H, ViT-g and ViT-G, the published ones whose heads are not 64 wide."""
_RESNETS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
}
"""(blocks of each stage, whether they are bottlenecks) -> depth."""


def architecture(
    tensors: Mapping[str, Tensor], described: Mapping[str, Any], path: Path
) -> ModelConfig:
    """Return the config of the image encoder in a file of timm's or Hugging Face's names.

    timm's files do not say how many heads a vision transformer has: without a config with
    ``num_heads``, they are 64 wide, as those of all published sizes up to L.

    Args:
        tensors: The file's tensors.
        described: The content of the config.json or NAME.json beside the file, or nothing.
        path: The file, for messages.

    Raises:
        UserError: The names are of another model, or the config is missing.
    """
    if timm.RESNET_LAYOUT.holds(tensors):
        return _resnet(tensors, path)
    if timm.LAYOUT.holds(tensors):
        return _timm_vit(tensors, described.get("arguments", {}), path)
    if huggingface.LAYOUT.holds(tensors):
        return _hugging_face_vit(described, path)
    raise UserError(
        f"{path} must hold an image encoder under timm's or Hugging Face's names, or be an export "
        "of this project, which says what model it is of; else give model=, such as ViTConfig(...)"
    )


def _numbers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many different numbers follow a prefix in the names."""
    rests = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    return len({rest.partition(".")[0] for rest in rests})


def _resnet(tensors: Mapping[str, Tensor], path: Path) -> ResNetConfig:
    blocks = tuple(_numbers(tensors, f"layer{stage}.") for stage in range(1, 5))
    depth = _RESNETS.get((blocks, "layer1.0.conv3.weight" in tensors))
    if depth is None or "conv1.weight" not in tensors:
        raise UserError(f"{path} must hold a ResNet-18, -34 or -50, but has {blocks} blocks")
    width, channels, kernel, _ = tensors["conv1.weight"].shape
    return ResNetConfig.from_dict(
        {
            "depth": depth,
            "stem_width": width,
            "channels": channels,
            "stem": "standard" if kernel == 7 else "small",
        }
    )


def _timm_vit(tensors: Mapping[str, Tensor], arguments: Mapping[str, Any], path: Path) -> ViTConfig:
    needed = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    for name in needed:
        if name not in tensors:
            raise UserError(f"{path} must hold a whole vision transformer, but lacks {name}")
    projection, table, hidden = (tensors[name] for name in needed)
    width, channels, _, patch = projection.shape
    rows = table.shape[-2]
    has_class, registers = "cls_token" in tensors, 0
    if "reg_token" in tensors:
        registers = tensors["reg_token"].shape[-2]
    patches = rows if math.isqrt(rows) ** 2 == rows else rows - has_class
    heads = arguments.get("num_heads") or _HEADS.get(width) or width // _HEAD_WIDTH
    pool = arguments.get("global_pool", "token" if has_class else "avg")
    return ViTConfig.from_dict(
        {
            "image_px": patch * math.isqrt(patches),
            "patch_px": patch,
            "width": width,
            "depth": _numbers(tensors, "blocks."),
            "heads": max(1, heads),
            "mlp_ratio": hidden.shape[0] / width,
            "positions": "learned",
            "pool": "class" if pool == "token" else "mean",
            "class_token": has_class,
            "registers": registers,
            "layer_scale": 1.0 if "blocks.0.ls1.gamma" in tensors else None,
            "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
            "channels": channels,
        }
    )


def _hugging_face_vit(described: Mapping[str, Any], path: Path) -> ViTConfig:
    kind = described.get("model_type")
    if kind not in ("vit", "vit_mae"):
        raise UserError(
            f"{path} needs the config.json of a vit or a vit_mae beside it, but "
            f"{'there is none' if kind is None else f'its model_type is {kind}'}; add it, or give "
            "model=, such as ViTConfig(...)"
        )
    # Defaults are those of transformers' ViTConfig, which leaves them out of config.json.
    width = int(described.get("hidden_size", 768))
    return ViTConfig.from_dict(
        {
            "image_px": described.get("image_size", 224),
            "patch_px": described.get("patch_size", 16),
            "width": width,
            "depth": described.get("num_hidden_layers", 12),
            "heads": described.get("num_attention_heads", 12),
            "mlp_ratio": described.get("intermediate_size", 3072) / width,
            "positions": "learned",
            "qkv_bias": described.get("qkv_bias", True),
            "norm_eps": described.get("layer_norm_eps", 1e-12),
            "channels": described.get("num_channels", 3),
        }
    )
