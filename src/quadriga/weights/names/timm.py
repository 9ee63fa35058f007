"""timm's names of a vision transformer, with the reference MAE's decoder, and of a ResNet.

torchvision's residual networks have the same names.
"""

from __future__ import annotations

import torch

from quadriga.weights.names.table import ForeignLayout, NameTable, Tensors

_TABLE = NameTable(
    stems=(
        ("patch_embed.proj", "encoder.patch_projection"),
        ("cls_token", "encoder.class_token"),
        ("reg_token", "encoder.register_tokens"),
        ("pos_embed", "encoder.positions"),
        ("norm", "encoder.norm"),
        ("head", "head"),
        ("mask_token", "decoder.mask_token"),
        ("decoder_embed", "decoder.embed"),
        ("decoder_pos_embed", "decoder.positions"),
        ("decoder_norm", "decoder.norm"),
        ("decoder_pred", "decoder.head"),
    ),
    blocks=(("blocks.", "encoder.blocks."), ("decoder_blocks.", "decoder.blocks.")),
    parts=(
        ("norm1", "attention_norm"),
        ("attn.qkv", "attention.qkv"),
        ("attn.proj", "attention.output"),
        ("ls1.gamma", "attention_residual.scale.factor"),
        ("norm2", "mlp_norm"),
        ("mlp.fc1", "mlp.hidden"),
        ("mlp.fc2", "mlp.output"),
        ("ls2.gamma", "mlp_residual.scale.factor"),
    ),
    skipped=("head_dist.",),
)


def as_it_is(tensors: Tensors) -> Tensors:
    """Return the tensors: nothing is fused or split."""
    return tensors


def _split(tensors: Tensors) -> Tensors:
    """Add the class token's position to the token itself if the model has registers.

    In models with registers, timm has positions for the patches only.
    """
    token = tensors.get("encoder.class_token")
    if token is None or "encoder.register_tokens" not in tensors:
        return tensors
    positions = tensors["encoder.positions"]
    folded = {
        "encoder.class_token": token + positions[:, :1],
        "encoder.positions": positions[:, 1:],
    }
    return {**tensors, **folded}


LAYOUT = ForeignLayout(
    table=_TABLE, marker="patch_embed.proj.weight", prefix="", fuse=as_it_is, split=_split
)
"""timm's models, and the reference implementation of MAE."""

RESNET_TABLE = NameTable(
    stems=(("conv1", "encoder.stem.conv"), ("bn1", "encoder.stem.norm"), ("fc", "head")),
    blocks=tuple((f"layer{i + 1}.", f"encoder.stages.{i}.blocks.") for i in range(4)),
    parts=(
        ("conv1", "conv1"),
        ("bn1", "norm1"),
        ("conv2", "conv2"),
        ("bn2", "norm2"),
        ("conv3", "conv3"),
        ("bn3", "norm3"),
        ("downsample.0", "shortcut.conv"),
        ("downsample.1", "shortcut.norm"),
    ),
    skipped=(),
)


def _add_counts(tensors: Tensors) -> Tensors:
    """Add ``num_batches_tracked``, which files from before torch 0.4.1 lack; no result uses it.

    torchvision's published ResNet-18, -34 and -50 are such files.
    """
    means = [name for name in tensors if name.endswith("running_mean")]
    counts = [name.replace("running_mean", "num_batches_tracked") for name in means]
    return {**tensors, **{name: torch.tensor(0) for name in counts if name not in tensors}}


RESNET_LAYOUT = ForeignLayout(
    table=RESNET_TABLE,
    marker="layer1.0.conv1.weight",
    prefix="",
    fuse=_add_counts,
    split=as_it_is,
)
"""ResNet-18, -34 and -50 of torchvision and timm, with any kernel size of the stem."""
