"""The architecture of a file of weights: from its header, the JSON beside it, and its tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from quadriga.contracts import ModelConfig
from quadriga.errors import UserError, reading
from quadriga.files import parse_json
from quadriga.weights.fit import ENCODER
from quadriga.weights.names import huggingface, mmselfsup, timm
from quadriga.weights.prefixes import prefixes_of, take

_WIDE = {1280: 16, 1408: 16, 1664: 16}
"""Published widths whose heads are not of 64 features."""
_HEADER = "quadriga"
_FILTERS = {2: "bilinear", 3: "bicubic"}
"""Pillow's number of a filter, in Hugging Face's ``resample`` -> ``views.interpolation``."""
_REMEDY = "in Python give load_encoder(model=...) the architecture"


@dataclass(frozen=True)
class Architecture:
    """What is known of a file of weights."""

    model: ModelConfig
    classes: int = 0
    """Outputs of its classifier; 0 without one."""
    class_names: tuple[str, ...] = ()
    objective: dict[str, Any] | None = None
    """The objective's config, where the file holds a whole one of this project."""
    views: dict[str, Any] = field(default_factory=dict)
    """Values of ``views``; see `read_views`."""
    assumed: tuple[str, ...] = ()
    """Sentences on what the file does not say."""


def read_architecture(
    path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None
) -> Architecture:
    """Return the architecture of a file's tensors.

    Args:
        path: The file; a ``config.json`` in its folder, or the JSON file of its own name, is read.
        tensors: Its tensors.
        notes: Its header.

    Raises:
        UserError: It is of no image encoder that is known here, or the JSON beside it is damaged.
    """
    with reading(path, "a file whose architecture is known"):
        header = parse_json((notes or {}).get(_HEADER, "{}"))
        beside = _read_beside(path)
        if "model" in header:
            return _of_own(header)
        found = _of_tensors(path, dict(tensors), beside)
        if "model" in (own := beside.get(_HEADER, {})):  # an export of this project says it all
            model = ModelConfig.from_dict(own["model"])
            return dataclasses.replace(found, model=model, assumed=())
        return found


def read_views(path: Path, notes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the values of ``views`` that a file's header, or the JSON beside it, gives.

    Args:
        path: The file of weights.
        notes: Its header.

    Returns:
        Of an export of this project all of them, with ``kind``; of timm's and Hugging Face's files
        ``mean``, ``std``, ``test_crop_fraction`` and ``interpolation``. Empty if it does not say
        how its images were normalised.

    Raises:
        UserError: The JSON is damaged.
    """
    with reading(path, "a file of weights"):
        header = parse_json((notes or {}).get(_HEADER, "{}"))
        return _views({_HEADER: header} if header else _read_beside(path))


def _read_beside(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    names = ("preprocessor_config.json", "config.json", path.with_suffix(".json").name)
    for file in (path.parent / name for name in names):
        if file.is_file():
            with reading(file, "a description of a model in JSON"):
                found |= dict(parse_json(file.read_text(encoding="utf-8")))
    return found


def _of_own(header: Mapping[str, Any]) -> Architecture:
    objective = header.get("objective")
    names = tuple(header.get("class_names", ()))
    classes = int((objective or {}).get("classes") or 0)
    return Architecture(
        ModelConfig.from_dict(header["model"]), classes, names, objective, header.get("views", {})
    )


def _views(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the views in what a file says of itself; see `read_views`."""
    if "views" in known.get(_HEADER, {}):
        return dict(known[_HEADER]["views"])
    given = known.get("pretrained_cfg", {})
    if "image_mean" in known:  # Hugging Face's preprocessor_config.json
        given = {"mean": known["image_mean"], "std": known.get("image_std")}
        given["interpolation"] = _FILTERS.get(known.get("resample", 2), "bicubic")
    if given.get("mean") is None or given.get("std") is None:
        return {}
    views = {"mean": given["mean"], "std": given["std"]}
    views["test_crop_fraction"] = given.get("crop_pct", 1.0)
    return views | {name: given[name] for name in ("interpolation",) if name in given}


def _of_tensors(path: Path, raw: dict[str, Tensor], known: Mapping[str, Any]) -> Architecture:
    for layout in (timm.RESNET_LAYOUT, timm.LAYOUT, huggingface.LAYOUT, mmselfsup.LAYOUT):
        before = prefixes_of(raw, layout.marker)
        if not before:
            continue
        taken = take(raw, [prefix.removesuffix(layout.prefix) for prefix in before], path)
        if layout is huggingface.LAYOUT and "model_type" not in known:
            raise UserError(
                f"{path} needs the config.json of its model beside it, but there is none; add it, "
                f"or {_REMEDY}"
            )
        if layout is timm.RESNET_LAYOUT:
            return _resnet(dict(taken.tensors), known)
        named = {layout.table.ours(layout.plain(name)): t for name, t in taken.tensors.items()}
        ours = layout.fuse({name: t for name, t in named.items() if name is not None})
        if layout is huggingface.LAYOUT:  # transformers leaves its defaults out
            known = {"layer_norm_eps": 1e-12, **known}
        return _vit(ours, known)
    if any(name.endswith("patch_projection.weight") for name in raw):
        prefix = "" if any(name.startswith(ENCODER) for name in raw) else ENCODER
        return _vit({prefix + name: tensor for name, tensor in raw.items()}, known)
    raise UserError(
        f"{path} must be of a vision transformer or a ResNet under the names of quadriga, timm or "
        f"Hugging Face, but starts with: {', '.join(list(raw)[:3])}; {_REMEDY}"
    )


def _vit(ours: Mapping[str, Tensor], known: Mapping[str, Any]) -> Architecture:
    told = {**known, **known.get("arguments", {})}
    kernel = ours["encoder.patch_projection.weight"]
    width, channels = kernel.shape[0], int(told.get("num_channels", told.get("in_chans", 3)))
    patch = kernel.shape[-1] if kernel.dim() == 4 else math.isqrt(kernel.shape[1] // channels)
    has_class = "encoder.class_token" in ours
    registers = ours.get("encoder.register_tokens")
    rows = ours["encoder.positions"].shape[-2]
    grid = math.isqrt(rows)
    if grid**2 != rows:
        grid = math.isqrt(rows - 1)
    heads = told.get("num_attention_heads", told.get("num_heads"))
    assumed = []
    if heads is None:
        heads = _WIDE.get(width, max(1, width // 64))
        assumed.append(f"{heads} heads, as is usual at width {width}")
    pool = {"avg": "mean", "token": "class", "": "class"}.get(told.get("global_pool", ""), "mean")
    blocks = {name.split(".")[2] for name in ours if name.startswith("encoder.blocks.")}
    values = {
        "kind": "vit",
        "image_px": grid * patch,
        "patch_px": patch,
        "width": width,
        "depth": len(blocks),
        "heads": heads,
        "mlp_ratio": ours["encoder.blocks.0.mlp.hidden.weight"].shape[0] / width,
        "positions": "learned",
        "pool": pool if has_class else "mean",
        "class_token": has_class,
        "registers": 0 if registers is None else registers.shape[-2],
        "layer_scale": 1.0 if any(name.endswith("scale.factor") for name in ours) else None,
        "qkv_bias": "encoder.blocks.0.attention.qkv.bias" in ours,
        "norm_eps": told.get("layer_norm_eps", 1e-6),
        "channels": channels,
    }
    return _described(ModelConfig.from_dict(values), ours.get("head.weight"), known, assumed)


def _resnet(raw: Mapping[str, Tensor], known: Mapping[str, Any]) -> Architecture:
    stem = raw["conv1.weight"]
    has_bottlenecks = "layer1.0.conv3.weight" in raw
    blocks = len({name.split(".")[1] for name in raw if name.startswith("layer3.")})
    size = known.get("pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]
    values = {
        "kind": "resnet",
        "image_px": size,
        "depth": 50 if has_bottlenecks else 18 if blocks == 2 else 34,
        "stem_width": stem.shape[0],
        "stem": "standard" if stem.shape[-1] == 7 else "small",
        "channels": stem.shape[1],
    }
    return _described(ModelConfig.from_dict(values), None, known, [])


def _described(
    model: ModelConfig, head: Tensor | None, known: Mapping[str, Any], assumed: list[str]
) -> Architecture:
    classes = 0 if head is None else head.shape[0]
    own, labels = known.get("quadriga", {}), known.get("id2label", {})
    names = own.get("class_names") or known.get("label_names")
    if not names and len(labels) == classes:
        names = [labels[str(number)] for number in range(classes)]
    return Architecture(model, classes, tuple(names or ()), None, _views(known), tuple(assumed))
