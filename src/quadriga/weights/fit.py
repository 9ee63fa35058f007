"""Converts the tensors of a file to the shapes and types of a module's tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional

from quadriga.errors import UserError
from quadriga.models.parts.positions import interpolate_table
from quadriga.models.vit import ViT, ViTConfig
from quadriga.weights.names.table import Tensors
from quadriga.weights.report import Remedies

ENCODER = "encoder."
"""Prefix of the names of an objective's encoder."""


@dataclass
class Content:
    """A file's tensors under the module's names."""

    tensors: Tensors = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    """The module's name -> the file's, for messages."""
    unexpected: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


@dataclass
class Fit:
    """The tensors of a file that fit a module, by the module's names."""

    tensors: Tensors = field(default_factory=dict)
    reshaped: dict[str, str] = field(default_factory=dict)
    """Name of each resampled tensor -> from which shape to which."""
    kept: dict[str, str] = field(default_factory=dict)
    """Name of each tensor that does not fit -> the reason."""


def fit_all(
    content: Content,
    targets: Tensors,
    module: nn.Module,
    interpolate: bool,
    remedies: Remedies,
    strict: bool,
) -> Fit:
    """Convert each tensor to the shape it has in the module.

    Args:
        content: The file's tensors.
        targets: The module's tensors.
        module: The module.
        interpolate: Whether tables of positions are resampled.
        remedies: The remedies that the error message names.
        strict: Whether a tensor that does not fit is an error.

    Raises:
        UserError: When strict, a tensor does not fit.
    """
    fit = Fit()
    encoder = vit_in(module)
    for name, target in targets.items():
        if name not in content.tensors:
            continue
        source = content.tensors[name]
        tensor = source if encoder is None else _shaped(name, source, target, encoder, interpolate)
        problem = _problem(tensor, source, target)
        if problem is None:
            fit.tensors[name] = tensor
            rows = source.shape[-2:-1]
            if name.endswith("positions") and rows != tensor.shape[-2:-1]:
                before = tuple(source.shape[-2:])
                fit.reshaped[name] = f"from {before} to {tuple(tensor.shape)}"
        else:
            there = content.sources[name]
            of = "" if there == name else f"{there} "
            fit.kept[name] = f"({of}{problem[1]} in the file, {problem[0]} here)"
    if strict and fit.kept:
        tables = encoder is not None and not interpolate
        only_positions = tables and all(name.endswith("positions") for name in fit.kept)
        raise UserError(
            f"tensors must have the shapes of the model's, but {len(fit.kept)} have not: "
            f"{'; '.join(_numbered_alike(fit.kept))}; "
            f"{remedies.resample if only_positions else 'use a model config of the same sizes'}, "
            f"or {remedies.loose} to leave them as they are"
        )
    return fit


def _numbered_alike(kept: Mapping[str, str]) -> list[str]:
    """Return each tensor with its reason; those that differ in a block's number are one entry."""
    groups: dict[str, list[str]] = {}
    for name, reason in kept.items():
        alike = re.sub(r"\.\d+(?=\.)", ".*", f"{name} {reason}")
        groups.setdefault(alike, []).append(f"{name} {reason}")
    return [
        entries[0] if len(entries) == 1 else f"{len(entries)} x {alike}"
        for alike, entries in groups.items()
    ]


def vit_in(module: nn.Module) -> ViT | None:
    """Return the module itself if it is a ViT, else its ``encoder`` if that is one, else None."""
    found = module if isinstance(module, ViT) else getattr(module, "encoder", None)
    return found if isinstance(found, ViT) else None


def foreign_shape(name: str, tensor: Tensor, config: ViTConfig) -> Tensor:
    """Return a ViT's tensor in the shape of timm's and Hugging Face's files.

    A patch projection becomes the kernel (width, channels, patch_px, patch_px) of a convolution, a
    table of positions (1, tokens, width); other tensors are returned as they are.
    """
    if name.endswith("patch_projection.weight"):
        return tensor.view(-1, config.channels, config.patch_px, config.patch_px)
    return tensor[None] if name.endswith("positions") else tensor


def _problem(tensor: Tensor, source: Tensor, target: Tensor) -> tuple[str, str] | None:
    """Return the wanted and the actual shape or type; None where the tensor fits."""
    if tensor.shape != target.shape:
        return f"shape {tuple(target.shape)}", f"{tuple(source.shape)}"
    # Floating types are converted into each other; an integer tensor is not a weight.
    if source.is_floating_point() != target.is_floating_point():
        return f"type {target.dtype}", f"{source.dtype}"
    return None


def _shaped(name: str, tensor: Tensor, target: Tensor, encoder: ViT, interpolate: bool) -> Tensor:
    """Return a patch projection or a table of positions in this project's shape."""
    if name.endswith("patch_projection.weight") and tensor.dim() == 4:
        return tensor.flatten(1)
    if not name.endswith("positions"):
        return tensor
    table = tensor[0] if tensor.dim() == 3 and tensor.shape[0] == 1 else tensor
    return _fit_table(table, target, encoder.config, interpolate)


def _fit_table(table: Tensor, target: Tensor, config: ViTConfig, interpolate: bool) -> Tensor:
    """Fit a table of positions (rows, width); it is resampled only if `interpolate` is set."""
    if table.shape == target.shape or table.dim() != 2 or table.shape[1] != target.shape[1]:
        return table
    prefix = int(config.class_token)
    if prefix and math.isqrt(table.shape[0]) ** 2 == table.shape[0]:
        # The file has positions of patches only: the class token gets a position of zeros.
        table = functional.pad(table, (0, 0, prefix, 0))
    if not interpolate or math.isqrt(table.shape[0] - prefix) ** 2 != table.shape[0] - prefix:
        return table
    return interpolate_table(table, (config.grid, config.grid), prefix)
