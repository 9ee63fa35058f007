"""Loads a file of weights into a module, and exports a module's weights to a file.

A module may start from the weights of another objective: see `StartsFromOther`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from quadriga.distributed.collectives import copy_whole
from quadriga.errors import UserError
from quadriga.models.bert import Bert
from quadriga.models.resnet import ResNet
from quadriga.models.vit import ViT
from quadriga.weights.files import read_weights, write_tensors
from quadriga.weights.fit import ENCODER, Content, fit_all, foreign_shape, vit_in
from quadriga.weights.names import huggingface, mmselfsup, mmselfsup_methods, timm
from quadriga.weights.names.table import ForeignLayout, Tensors
from quadriga.weights.prefixes import Taken, prefixes_before, prefixes_of, take
from quadriga.weights.report import IN_PYTHON, Remedies, WeightReport, listed


@runtime_checkable
class StartsFromOther(Protocol):
    """A module that can start from the weights of a model trained for another objective.

    Each part is a prefix of names, such as ``classifier.``.
    """

    new_parts: tuple[str, ...]
    """Parts of the module that are never loaded: a file's tensors of these names belong to another
    task."""
    optional_parts: tuple[str, ...]
    """Parts of the module that keep their values if the file has no tensor of them."""


def drop_parts(content: Content, module: nn.Module) -> None:
    """Move the tensors of `new_parts` from the content's tensors to its skipped names."""
    if not isinstance(module, StartsFromOther):
        return
    for name in [name for name in content.tensors if name.startswith(module.new_parts)]:
        content.skipped.append(content.sources[name])
        del content.tensors[name]


def fresh_names(names: Iterable[str], content: Content, module: nn.Module) -> tuple[str, ...]:
    """Return the names of the module's tensors that deliberately keep their values.

    Args:
        names: Names of the module's tensors.
        content: The file's tensors, after `drop_parts`.
        module: The module.
    """
    if not isinstance(module, StartsFromOther):
        return ()
    absent = [
        part
        for part in module.optional_parts
        if not any(name.startswith(part) for name in content.tensors)
    ]
    return tuple(name for name in names if name.startswith((*module.new_parts, *absent)))


Layout = Literal["quadriga", "timm", "hf", "mmselfsup"]

_LAYOUTS: Mapping[type[nn.Module], Mapping[str, ForeignLayout]] = {
    ViT: {"timm": timm.LAYOUT, "hf": huggingface.LAYOUT, "mmselfsup": mmselfsup.LAYOUT},
    ResNet: {"timm": timm.RESNET_LAYOUT},
    Bert: {"hf": huggingface.BERT_LAYOUT},
}
_ENCODERS = tuple(_LAYOUTS)
_DESCRIBED = {ViT: "a vision transformer", ResNet: "a ResNet", Bert: "a BERT"}
_DECODER = "decoder."
_HEADS: Mapping[type[nn.Module], tuple[str, ...]] = {
    ViT: ("head.",),
    ResNet: ("head.",),
    Bert: ("head.", "pooler.", "next_sentence.", "classifier."),
}
"""Prefixes of the parts that an objective may have beside its encoder."""


def load_weights(
    module: nn.Module,
    path: Path | str,
    layout: Layout | Literal["auto"] = "auto",
    strict: bool = True,
    interpolate: bool = False,
) -> WeightReport:
    """Load a file of weights into a module; on an error the module is unchanged.

    Args:
        module: A vision transformer, a ResNet or a BERT, an objective with one as its ``encoder``,
            or, for this project's own names, any module.
        path: The file, as for `read_tensors`.
        layout: Whose names the file uses; "auto" detects it from the names.
        strict: Whether missing and unexpected tensors, and those of other shapes, are an error;
            otherwise the report lists them, and the module keeps its own values in their place.
        interpolate: Whether tables of positions are resampled to the module's grid.

    Returns:
        The outcome for each tensor.

    Raises:
        UserError: The file cannot be read, no tensor matches, or, when strict, a tensor is
            missing, unexpected or of another shape.
    """
    path = Path(path)
    content = read_weights(path)
    return load_tensors(
        module, content.tensors, path, layout, strict, interpolate, group=content.group
    )


def load_tensors(
    module: nn.Module,
    raw: Mapping[str, Tensor],
    path: Path,
    layout: Layout | Literal["auto"] = "auto",
    strict: bool = True,
    interpolate: bool = False,
    remedies: Remedies = IN_PYTHON,
    detail: str = "",
    group: str = "",
) -> WeightReport:
    """Load named tensors into a module; on an error the module is unchanged.

    Args:
        module: As for `load_weights`.
        raw: The tensors, of any floating type and on any device; they are converted.
        path: Where the tensors come from, for messages.
        layout: As for `load_weights`.
        strict: As for `load_weights`.
        interpolate: As for `load_weights`.
        remedies: The remedies that error messages name.
        detail: Additional information on `path` for the report.
        group: The group of the file that `raw` is, for the report.

    Raises:
        UserError: As `load_weights`, except for errors in reading.
    """
    names, taken = _layout_of(raw, path, module, layout)
    content = _under_module_names(taken.tensors, names, module)
    _name_in_full(content, taken)
    drop_parts(content, module)
    targets: Tensors = module.state_dict()
    fresh = fresh_names(targets, content, module)
    content.unexpected += [content.sources[n] for n in content.tensors if n not in targets]
    fit = fit_all(content, targets, module, interpolate, remedies, strict)
    report = WeightReport(
        path=path,
        layout=names,
        matched=tuple(fit.tensors),
        missing=tuple(n for n in targets if n not in content.tensors and n not in fresh),
        unexpected=tuple(content.unexpected),
        skipped=tuple(content.skipped),
        fresh=fresh,
        reshaped=fit.reshaped,
        kept=fit.kept,
        detail=detail,
        taken=group + taken.prefix,
    )
    _check(report, strict, remedies)
    with torch.no_grad():
        for name, tensor in fit.tensors.items():
            copy_whole(targets[name], tensor)
    return report


def export_weights(module: nn.Module, path: Path | str, layout: Layout = "quadriga") -> None:
    """Write a module's weights atomically: the file appears whole or not at all.

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
    foreign, encoder = _foreign_layout(module, layout), vit_in(module)
    whole = not isinstance(module, _ENCODERS)
    tensors = {name if whole else ENCODER + name: value for name, value in state.items()}
    if encoder is None:
        shaped = tensors
    else:
        shaped = {
            name: foreign_shape(name, value, encoder.config) for name, value in tensors.items()
        }
    named = {}
    for name, tensor in foreign.split(shaped).items():
        target = foreign.written(name) if whole else foreign.table.foreign(name)
        if target is None:
            raise UserError(
                f"the layout {layout} has no name for {name}; export with the layout quadriga"
            )
        named[target] = tensor
    write_tensors(named, Path(path))


def _layout_of(
    raw: Mapping[str, Tensor], path: Path, module: nn.Module, asked: Layout | Literal["auto"]
) -> tuple[Layout, Taken]:
    """Return the layout whose names a file uses, and the tensors that it names."""
    own = set(module.state_dict())
    own |= {name.removeprefix(ENCODER) for name in own}
    is_own = any(name in own or name.removeprefix(ENCODER) in own for name in raw)
    whole = mmselfsup_methods.layout_of(module)
    if whole is not None and whole.marker in raw and asked in ("mmselfsup", "auto"):
        return "mmselfsup", Taken(raw, "", ())
    for of_kind in _LAYOUTS.values():
        for layout, foreign in of_kind.items():
            prefixes = [
                prefix.removesuffix(foreign.prefix) for prefix in prefixes_of(raw, foreign.marker)
            ]
            if prefixes and asked in (layout, "auto"):
                return cast(Layout, layout), take(raw, prefixes, path)
    if asked != "auto":
        return asked, Taken(raw, "", ())
    if is_own:
        return "quadriga", Taken(raw, "", ())
    prefixes = prefixes_before(raw, own)
    if prefixes:
        return "quadriga", take(raw, prefixes, path)
    raise UserError(
        f"{path} must use the names of quadriga, timm, hf or mmselfsup, but starts with: "
        f"{listed(list(raw))}"
    )


def _name_in_full(content: Content, taken: Taken) -> None:
    """Give a content's names of the file their prefix again, and add what was not taken."""

    def full(name: str) -> str:
        return taken.prefix + name if name in taken.tensors else name

    content.sources = {name: full(source) for name, source in content.sources.items()}
    content.unexpected = [full(name) for name in content.unexpected]
    content.skipped = [*map(full, content.skipped), *taken.rest]


def _under_module_names(raw: Mapping[str, Tensor], layout: Layout, module: nn.Module) -> Content:
    """Translate a file's names to the module's; fuse query, key and value if the module does."""
    content = Content()
    foreign = None if layout == "quadriga" else _foreign_layout(module, layout, raw)
    if foreign is None and _kind_of(module) is None:
        return Content(dict(raw), {name: name for name in raw})
    absent = _absent_parts(module)
    # A file in this project's layout may hold an encoder alone, without the prefix.
    prefix = "" if any(name.startswith(ENCODER) for name in raw) else ENCODER
    ours: Tensors = {}
    for source, tensor in raw.items():
        plain = foreign.plain(source) if foreign else source
        name = foreign.table.ours(plain) if foreign else prefix + plain
        head = foreign is not None and plain.startswith(tuple(foreign.table.skipped))
        if head or (name is not None and name.startswith(absent)):
            content.skipped.append(source)
        elif name is None:
            content.unexpected.append(source)
        else:
            ours[name] = tensor
            content.sources[name] = source
    fused = foreign.fuse(ours) if foreign else ours
    for name, tensor in fused.items():
        target = name.removeprefix(ENCODER) if isinstance(module, _ENCODERS) else name
        content.tensors[target] = tensor
        content.sources[target] = content.sources.get(name, name)
    return content


def _absent_parts(module: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of parts that a file may have and the module lacks."""
    kind = _kind_of(module)
    heads = _HEADS[kind] if kind else ()
    if isinstance(module, ViT):
        return (_DECODER, *heads)
    names = module.state_dict()
    return tuple(part for part in heads if not any(name.startswith(part) for name in names))


def _kind_of(module: nn.Module) -> type[nn.Module] | None:
    """Return the class of the encoder that the module is or has; None if it is no known one."""
    for found in (module, getattr(module, "encoder", None)):
        for kind in _LAYOUTS:
            if isinstance(found, kind):
                return kind
    return None


def _foreign_layout(
    module: nn.Module, layout: str, names: Container[str] | None = None
) -> ForeignLayout:
    """Return a layout for the module's kind of encoder, or for its whole model.

    Args:
        module: The module.
        layout: Name of the layout.
        names: Names of a file that is read; None where one is written.

    Raises:
        UserError: The layout has no names for that kind.
    """
    whole = mmselfsup_methods.layout_of(module)
    if layout == "mmselfsup" and whole is not None and (names is None or whole.marker in names):
        return whole
    kind = _kind_of(module)
    of_kind = _LAYOUTS[kind] if kind else {}
    if layout not in of_kind:
        needed = " or ".join(_DESCRIBED[k] for k, known in _LAYOUTS.items() if layout in known)
        raise UserError(
            f"the layout {layout} needs {needed}, but the module is a "
            f"{type(module).__name__}; use the layout quadriga"
        )
    return of_kind[layout]


def _check(report: WeightReport, strict: bool, remedies: Remedies) -> None:
    if not report.matched:
        rest = [*report.kept, *report.unexpected, *report.skipped]
        raise UserError(f"{report.path} has no tensor that fits this model: {listed(rest)}")
    if strict and not report.complete:
        parts = [
            f"{len(names)} {label} ({listed(names)})"
            for label, names in (("missing", report.missing), ("unexpected", report.unexpected))
            if names
        ]
        raise UserError(
            f"{report.path} does not fit the model: {', '.join(parts)}; change the model's config, "
            f"or {remedies.loose} to load what fits"
        )
