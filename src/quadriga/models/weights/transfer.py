"""Loading a file of weights into a module, and exporting a module's weights to a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadriga.errors import UserError
from quadriga.models.positions import interpolate_table
from quadriga.models.vit import ViT, ViTConfig
from quadriga.models.weights import huggingface, timm
from quadriga.models.weights.files import read_tensors, write_tensors
from quadriga.models.weights.names import ForeignLayout, Tensors
from quadriga.models.weights.report import WeightReport, listed

Layout = Literal["quadriga", "timm", "hf"]

_FOREIGN: Mapping[str, ForeignLayout] = {"timm": timm.LAYOUT, "hf": huggingface.LAYOUT}
_ENCODER = "encoder."
_DECODER = "decoder."


@dataclass
class _Content:
    """A file's tensors under the module's names."""

    tensors: Tensors = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    """The module's name -> the file's, for sentences."""
    unexpected: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def load_weights(
    module: nn.Module,
    path: Path | str,
    layout: Layout | Literal["auto"] = "auto",
    strict: bool = True,
    interpolate: bool = False,
) -> WeightReport:
    """Fill a module from a file of weights; it is filled whole or, on an error, not at all.

    Args:
        module: A vision transformer, an objective with one as its ``encoder``, or, for this
            project's own names, any module.
        path: The file, as for `read_tensors`.
        layout: Whose names the file uses; "auto" tells by them.
        strict: Whether missing and unexpected tensors are an error.
        interpolate: Whether tables of positions are resampled to the module's grid.

    Returns:
        What became of each tensor.

    Raises:
        UserError: The file cannot be read, a tensor has a wrong shape, nothing matches, or, when
            strict, something is missing or unexpected.
    """
    path = Path(path)
    raw = read_tensors(path)
    names = _layout_of(raw, path, module) if layout == "auto" else layout
    content = _under_module_names(raw, names, module)
    targets: Tensors = module.state_dict()
    content.unexpected += [content.sources[n] for n in content.tensors if n not in targets]
    fitted, reshaped = _fitted(content, targets, module, interpolate)
    report = WeightReport(
        path=path,
        layout=names,
        matched=tuple(fitted),
        missing=tuple(name for name in targets if name not in fitted),
        unexpected=tuple(content.unexpected),
        left_out=tuple(content.left_out),
        reshaped=reshaped,
    )
    _check(report, strict)
    with torch.no_grad():
        for name, tensor in fitted.items():
            targets[name].copy_(tensor)
    return report


def export_weights(module: nn.Module, path: Path | str, layout: Layout = "quadriga") -> None:
    """Write a module's weights; the file appears whole or not at all.

    Args:
        module: As for `load_weights`.
        path: The file; its suffix decides the format, as for `write_tensors`.
        layout: Whose names the file uses.

    Raises:
        UserError: The layout has no name for a tensor, or the file cannot be written.
    """
    state: Tensors = module.state_dict()
    if layout == "quadriga":
        write_tensors(state, Path(path))
        return
    foreign, encoder = _FOREIGN[layout], _encoder_of(module, layout)
    whole = not isinstance(module, ViT)
    tensors = {name if whole else _ENCODER + name: value for name, value in state.items()}
    shaped = {name: _foreign_shape(name, value, encoder) for name, value in tensors.items()}
    named = {}
    for name, tensor in foreign.split(shaped).items():
        target = foreign.table.foreign(name)
        if target is None:
            raise UserError(
                f"the layout {layout} has no name for {name}; export with the layout quadriga"
            )
        before = foreign.prefix if whole and name.startswith(_ENCODER) else ""
        named[before + target] = tensor
    write_tensors(named, Path(path))


def _layout_of(raw: Tensors, path: Path, module: nn.Module) -> Layout:
    """Tell whose names a file uses."""
    if timm.LAYOUT.holds(raw):
        return "timm"
    if huggingface.LAYOUT.holds(raw):
        return "hf"
    stems = {name.removeprefix(_ENCODER) for name in raw}
    if stems & {name.removeprefix(_ENCODER) for name in module.state_dict()}:
        return "quadriga"
    raise UserError(
        f"{path} must use the names of quadriga, timm or hf, but starts with: {listed(list(raw))}"
    )


def _under_module_names(raw: Tensors, layout: Layout, module: nn.Module) -> _Content:
    """Translate a file's names to the module's, and fuse what the module holds fused."""
    content = _Content()
    foreign = _FOREIGN.get(layout)
    if foreign is not None:
        _encoder_of(module, layout)
    elif _vit_in(module) is None:
        return _Content(raw, {name: name for name in raw})
    bare = isinstance(module, ViT)
    # A file of ours may hold an encoder alone, without the prefix it has in an objective.
    prefix = "" if any(name.startswith(_ENCODER) for name in raw) else _ENCODER
    ours: Tensors = {}
    for source, tensor in raw.items():
        plain = source.removeprefix(foreign.prefix) if foreign else source
        name = foreign.table.ours(plain) if foreign else prefix + plain
        head = foreign is not None and plain.startswith(tuple(foreign.table.left_out))
        if head or (bare and name is not None and name.startswith(_DECODER)):
            content.left_out.append(source)
        elif name is None:
            content.unexpected.append(source)
        else:
            ours[name] = tensor
            content.sources[name] = source
    fused = foreign.fuse(ours) if foreign else ours
    for name, tensor in fused.items():
        target = name.removeprefix(_ENCODER) if bare else name
        content.tensors[target] = tensor
        content.sources[target] = content.sources.get(name, name)
    return content


def _fitted(
    content: _Content, targets: Tensors, module: nn.Module, interpolate: bool
) -> tuple[Tensors, dict[str, str]]:
    """Give each tensor the module's form; return them, and what was resampled and how."""
    fitted: Tensors = {}
    reshaped: dict[str, str] = {}
    encoder = _vit_in(module)
    for name, target in targets.items():
        if name not in content.tensors:
            continue
        tensor = content.tensors[name]
        if encoder is not None and name.endswith("patch_projection.weight") and tensor.dim() == 4:
            tensor = tensor.flatten(1)
        elif encoder is not None and name.endswith("positions"):
            tensor = tensor[0] if tensor.dim() == 3 and tensor.shape[0] == 1 else tensor
            before = tuple(tensor.shape)
            tensor = _fit_table(tensor, target, encoder.config, interpolate)
            if tensor.shape != before:
                reshaped[name] = f"from {before} to {tuple(tensor.shape)}"
        if tensor.shape != target.shape:
            raise _wrong_shape(name, target, content, interpolate)
        fitted[name] = tensor
    return fitted, reshaped


def _fit_table(table: Tensor, target: Tensor, config: ViTConfig, interpolate: bool) -> Tensor:
    """Fit a table of positions, as far as that is lossless or asked for."""
    if table.shape == target.shape or table.dim() != 2 or table.shape[1] != target.shape[1]:
        return table
    prefix = int(config.class_token)
    if prefix and math.isqrt(table.shape[0]) ** 2 == table.shape[0]:
        # Patches alone: the class token has no position of its own in such a file.
        table = functional.pad(table, (0, 0, prefix, 0))
    return interpolate_table(table, (config.grid, config.grid), prefix) if interpolate else table


def _foreign_shape(name: str, tensor: Tensor, encoder: ViT) -> Tensor:
    """Give a tensor the form it has in foreign files: a convolution's kernel, a batch of one."""
    config: ViTConfig = encoder.config
    if name.endswith("patch_projection.weight"):
        return tensor.view(-1, config.channels, config.patch_px, config.patch_px)
    return tensor[None] if name.endswith("positions") else tensor


def _vit_in(module: nn.Module) -> ViT | None:
    found = module if isinstance(module, ViT) else getattr(module, "encoder", None)
    return found if isinstance(found, ViT) else None


def _encoder_of(module: nn.Module, layout: str) -> ViT:
    encoder = _vit_in(module)
    if encoder is None:
        raise UserError(
            f"the layout {layout} needs a vision transformer, but the module is a "
            f"{type(module).__name__}; use the layout quadriga"
        )
    return encoder


def _wrong_shape(name: str, target: Tensor, content: _Content, interpolate: bool) -> UserError:
    asked = name.endswith("positions") and not interpolate
    remedy = "pass interpolate=True" if asked else "use a model config of the same sizes"
    return UserError(
        f"tensor {name} must have the shape {tuple(target.shape)}, but {content.sources[name]} in "
        f"the file has {tuple(content.tensors[name].shape)}; {remedy}"
    )


def _check(report: WeightReport, strict: bool) -> None:
    if not report.matched:
        raise UserError(f"{report.path} has no tensor of this model: {listed(report.unexpected)}")
    if strict and not report.complete:
        parts = [
            f"{len(names)} {label} ({listed(names)})"
            for label, names in (("missing", report.missing), ("unexpected", report.unexpected))
            if names
        ]
        raise UserError(
            f"{report.path} does not fit the model: {', '.join(parts)}; change the model's config, "
            f"or pass strict=False to load what fits"
        )
