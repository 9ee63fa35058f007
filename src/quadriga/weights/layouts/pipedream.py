"""BERT's tensors in the files of pipeline stages: names in any spelling -> Hugging Face's.

A stage's file holds the tensors of its modules, in order. In this project's files a tensor has its
name in Hugging Face's ``BertForPreTraining``. The reference system's files number the layers of
each module from 0, and data parallelism puts ``module.`` before a name; the number of a layer in
the whole model then follows from the order of the modules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from quadriga.errors import UserError
from quadriga.weights.names.huggingface import BERT_LAYOUT, fuse_qkv

_LEAF = r"\.(?P<leaf>weight|bias|gamma|beta)"
_LAYER = re.compile(
    r"(?P<before>(?:.*?\.)??)(?P<part>"
    r"attention\.self\.(?:query|key|value)|attention\.output\.(?:dense|LayerNorm)"
    rf"|intermediate\.dense(?:_act)?|output\.(?:dense|LayerNorm)){_LEAF}"
)
_PARTS_OF_A_LAYER = 16

_STEMS = (
    (rf"(?P<part>(?:word|position|token_type)_embeddings){_LEAF}", "bert.embeddings."),
    (rf"(?P<part>transform\.(?:dense|LayerNorm))(?:_act)?{_LEAF}", "cls.predictions."),
    (rf"(?P<part>decoder){_LEAF}", "cls.predictions."),
    (r"predictions\.(?P<leaf>bias)", "cls.predictions."),
    (rf"(?P<part>seq_relationship){_LEAF}", "cls."),
    # The remaining names: the norm of the embeddings, and the pooler.
    (rf"(?P<part>LayerNorm){_LEAF}", "bert.embeddings."),
    (rf"(?P<part>dense)(?:_act)?{_LEAF}", "bert.pooler."),
)
"""(pattern of the end of a name outside the layers, prefix of its Hugging Face name)."""

WORDS = "encoder.embeddings.word.weight"
"""This project's name of the word embeddings."""
FOREIGN_WORDS = "bert.embeddings.word_embeddings.weight"
"""Hugging Face's name of the word embeddings."""
TIED = "cls.predictions.decoder.weight"
"""Hugging Face's name of the word embeddings where the output layer uses them."""

_DECODER = "head.decoder."
_MODERN = {"gamma": "weight", "beta": "bias"}


def assemble(modules: Sequence[Mapping[str, Tensor]], source: str) -> dict[str, Tensor]:
    """Join the modules of a model, in order, under Hugging Face's names.

    Args:
        modules: The tensors of each module; those with "mask" in their name are left out.
        source: Where the modules come from, for the error message.

    Returns:
        Tensors named as in ``BertForPreTraining``: encoder, pooler and heads, as far as present.

    Raises:
        UserError: A name is unknown or comes twice, or a layer lacks a tensor.
    """
    whole: dict[str, Tensor] = {}
    layers: dict[tuple[int, str], int] = {}
    for position, module in enumerate(modules):
        named = {re.sub(r"^(module\.)+", "", name): name for name in module if "mask" not in name}
        for plain in sorted(named, key=_numbers):
            name, tensor = named[plain], module[named[plain]]
            target = _translated(plain, position, layers)
            if target is None or target in whole:
                what = "comes twice" if target else "is none of BERT's"
                raise UserError(f"{source} must hold the modules of a BERT, but {name!r} {what}")
            whole[target] = tensor
    for number in range(len(layers)):
        found = sum(name.startswith(f"bert.encoder.layer.{number}.") for name in whole)
        if found != _PARTS_OF_A_LAYER:
            raise UserError(
                f"{source} must hold {_PARTS_OF_A_LAYER} tensors of each layer, but has {found} of "
                f"layer {number}"
            )
    return whole


def _numbers(name: str) -> list[int]:
    """Return the numbers in a name, as a sort key that puts layer 10 after layer 9."""
    return [int(number) for number in re.findall(r"\d+", name)]


def _translated(name: str, module: int, layers: dict[tuple[int, str], int]) -> str | None:
    """Return Hugging Face's name or None; `layers` numbers the layers in the order of the calls."""
    found = _LAYER.fullmatch(name)
    if found is not None:
        number = layers.setdefault((module, found["before"]), len(layers))
        part = found["part"].replace("_act", "")
        return f"bert.encoder.layer.{number}.{part}.{_leaf(found)}"
    for pattern, before in _STEMS:
        found = re.fullmatch(rf"(?:.*\.)?{pattern}", name)
        if found is not None:
            part = found.groupdict().get("part")
            return f"{before}{part}.{_leaf(found)}" if part else f"{before}{_leaf(found)}"
    return None


def _leaf(found: re.Match[str]) -> str:
    return _MODERN.get(found["leaf"], found["leaf"])


def foreign_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors of a BERT objective of this project to Hugging Face's names.

    Args:
        tensors: Any subset of them; the fused query, key and value are split.

    Raises:
        ValueError: A tensor is not one of a BERT's.
    """
    named = {}
    for name, tensor in BERT_LAYOUT.split(dict(tensors)).items():
        target = BERT_LAYOUT.table.foreign(name)
        if target is None:
            raise ValueError(f"{name} is no tensor of a BERT")
        before = BERT_LAYOUT.prefix if name.startswith(BERT_LAYOUT.prefixed) else ""
        named[before + target] = tensor
    return named


def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors that `assemble` returned to this project's names.

    The output layer's own copy of the word embeddings is dropped.
    """
    named = {}
    for name, tensor in tensors.items():
        target = BERT_LAYOUT.table.ours(name.removeprefix(BERT_LAYOUT.prefix))
        assert target is not None, name  # `assemble` returns known names only
        if target != _DECODER + "weight":
            named[target.replace(_DECODER, "head.")] = tensor
    return fuse_qkv(named)
