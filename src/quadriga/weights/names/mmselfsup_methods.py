"""Names of whole models of mmselfsup: an encoder, its heads, and the teacher that follows it.

A head with normalisations is there ``fc0, bn0, fc1, ...`` (NonLinearNeck). A teacher holds encoder
and neck as ``module.0`` and ``module.1``.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

from quadriga.contracts import ObjectiveConfig
from quadriga.models.vit import ViT
from quadriga.weights.names.mmselfsup import TABLE
from quadriga.weights.names.table import ForeignLayout, NameTable, Tensors
from quadriga.weights.names.timm import RESNET_TABLE

Pairs = list[tuple[str, str]]

TEACHERS = {"moco": "encoder_k.", "byol": "target_net.", "moco_v3": "momentum_encoder."}
"""Method -> prefix of its teacher."""
STEPS = "steps"
"""Name of a teacher's number of updates, below its prefix."""
_BIASED = ("byol", "swav")
"""Methods whose files have biases before a normalisation, which subtracts them again."""
_MARKERS = {"moco": "neck.mlp.0.weight", "swav": "neck.projection_neck.0.weight"}
_MARKER = "neck.fc0.weight"


def layout_of(module: nn.Module) -> ForeignLayout | None:
    """Return the layout of an objective's whole model; None where mmselfsup has no such method."""
    config = getattr(module, "config", None)
    if not isinstance(config, ObjectiveConfig):
        return None
    return method_layout(config.kind(), isinstance(getattr(module, "encoder", None), ViT))


@functools.cache
def method_layout(method: str, is_vit: bool) -> ForeignLayout | None:
    """Return the layout of a method's whole model; None where mmselfsup has no such method.

    Args:
        method: The objective's kind.
        is_vit: Whether the encoder is a vision transformer, else a ResNet.
    """
    heads = _heads(method, is_vit)
    if not heads:
        return None
    encoder = TABLE if is_vit else RESNET_TABLE
    places = [("backbone.", "encoder.")]
    skipped = ["data_preprocessor."]
    if method in TEACHERS:
        teacher = TEACHERS[method]
        places.append((f"{teacher}module.0.", "teacher_encoder."))
        heads += [
            (f"{teacher}module.1.{foreign.removeprefix('neck.')}", f"teacher_{ours}")
            for foreign, ours in heads
            if foreign.startswith("neck.")
        ]
        skipped.append(teacher + STEPS)
    return ForeignLayout(
        table=NameTable(
            stems=[pair for place in places for pair in _placed(encoder.stems, *place)] + heads,
            blocks=[pair for place in places for pair in _placed(encoder.blocks, *place)],
            parts=encoder.parts,
            skipped=skipped,
        ),
        marker=_MARKERS.get(method, _MARKER),
        prefix="",
        fuse=_fuse,
        split=functools.partial(_split, method in _BIASED),
    )


def _placed(pairs: object, foreign: str, ours: str) -> Pairs:
    """Return the pairs of an encoder's table with the prefixes of a place of the model."""
    assert isinstance(pairs, tuple)
    return [
        (foreign + theirs, ours + own.removeprefix("encoder."))
        for theirs, own in pairs
        if own.startswith("encoder.")
    ]


def _heads(method: str, is_vit: bool) -> Pairs:
    projector, predictor = ("neck.", "projector."), ("head.predictor.", "predictor.")
    heads: dict[str, Pairs] = {
        "simclr": _head(*projector, 2, "neck.bn1"),
        "moco": [
            ("queue", "queue"),
            ("queue_ptr", "queue_ptr"),
            ("neck.mlp.0", "head.0"),
            ("neck.mlp.2", "head.2"),
        ],
        "byol": [*_head(*projector, 2), *_head(*predictor, 2)],
        "simsiam": [*_head(*projector, 3, "neck.bn2"), *_head(*predictor, 2)],
        "barlow_twins": _head(*projector, 3, "head.bn"),
        "swav": [
            ("neck.projection_neck.0", "projector.maps.0"),
            ("neck.projection_neck.1", "projector.norms.0"),
            ("neck.norm", "projector.norms.0"),
            ("neck.projection_neck.3", "projector.maps.1"),
            ("head.loss.prototypes", "prototypes"),
            # The reference keeps its queue in files of its own, and passes over these.
            ("queue", "queue"),
            ("queued", "queued"),
        ],
        "moco_v3": [*_head(*projector, 2, "neck.bn1"), *_head(*predictor, 2)],
    }
    if method == "moco_v3" and is_vit:
        return [
            *_head(*projector, 3, "neck.bn2"),
            *_head(*predictor, 2, "head.predictor.bn1"),
        ]
    return list(heads.get(method, ()))


def _head(foreign: str, ours: str, maps: int, last_norm: str = "") -> Pairs:
    """Return the names of a projection head; `last_norm` is the foreign one of its last norm."""
    pairs = [(f"{foreign}fc{i}", f"{ours}maps.{i}") for i in range(maps)]
    pairs += [(f"{foreign}bn{i}", f"{ours}norms.{i}") for i in range(maps - 1)]
    return [*pairs, *([(last_norm, f"{ours}last_norm")] if last_norm else [])]


def _fuse(tensors: Tensors) -> Tensors:
    """Subtract biases before a normalisation from its mean; begin MoCo's queue at its newest."""
    fused = dict(tensors)
    for name in tensors:
        norm = name.replace(".maps.", ".norms.").removesuffix("bias") + "running_mean"
        if name.endswith(".bias") and ".maps." in name and norm in tensors:
            fused[norm] = tensors[norm] - fused.pop(name)
    if "queue_ptr" in fused:
        oldest = int(fused.pop("queue_ptr"))
        fused["queue"] = tensors["queue"].t().roll(-oldest, 0).flip(0)
    return fused


def _split(has_biases: bool, tensors: Tensors) -> Tensors:
    """Do the inverse of `_fuse`; biases before a normalisation are zeros."""
    split = dict(tensors)
    for name, tensor in tensors.items():
        norm = name.replace(".maps.", ".norms.").removesuffix("weight") + "running_mean"
        if has_biases and ".maps." in name and name.endswith(".weight") and norm in tensors:
            split[name.removesuffix("weight") + "bias"] = torch.zeros_like(tensor[:, 0])
    if "queue" in tensors and "queued" not in tensors:
        split["queue"] = tensors["queue"].flip(0).t().contiguous()
        split["queue_ptr"] = torch.zeros(1, dtype=torch.int64)
    return split
