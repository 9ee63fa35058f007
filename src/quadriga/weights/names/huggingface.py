"""Hugging Face's names in all spellings found in files: ViTModel, ViTForImageClassification and
ViTMAEForPreTraining.
"""

from __future__ import annotations

import torch

from quadriga.weights.names.table import ForeignLayout, NameTable, Tensors

_QKV = ("attention.query", "attention.key", "attention.value")

_TABLE = NameTable(
    stems=(
        ("embeddings.cls_token", "encoder.class_token"),
        ("embeddings.position_embeddings", "encoder.positions"),
        ("embeddings.patch_embeddings.projection", "encoder.patch_projection"),
        ("layernorm", "encoder.norm"),
        ("classifier", "head"),
        ("decoder.mask_token", "decoder.mask_token"),
        ("decoder.decoder_pos_embed", "decoder.positions"),
        ("decoder.decoder_embed", "decoder.embed"),
        ("decoder.decoder_norm", "decoder.norm"),
        ("decoder.decoder_pred", "decoder.head"),
    ),
    blocks=(
        ("encoder.layer.", "encoder.blocks."),
        ("layers.", "encoder.blocks."),
        ("decoder.decoder_layers.", "decoder.blocks."),
        ("decoder.decoder_encoder.layer.", "decoder.blocks."),
    ),
    parts=(
        ("layernorm_before", "attention_norm"),
        ("attention.attention.query", _QKV[0]),
        ("attention.attention.key", _QKV[1]),
        ("attention.attention.value", _QKV[2]),
        ("attention.output.dense", "attention.output"),
        ("attention.q_proj", _QKV[0]),
        ("attention.k_proj", _QKV[1]),
        ("attention.v_proj", _QKV[2]),
        ("attention.o_proj", "attention.output"),
        ("layernorm_after", "mlp_norm"),
        ("intermediate.dense", "mlp.hidden"),
        ("output.dense", "mlp.output"),
        ("mlp.fc1", "mlp.hidden"),
        ("mlp.fc2", "mlp.output"),
    ),
    left_out=("pooler.", "embeddings.mask_token"),
)


def fuse_qkv(tensors: Tensors) -> Tensors:
    """Join query, key and value."""
    fused = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if not module.endswith(_QKV):
            fused[name] = tensor
        elif module.endswith(_QKV[0]):
            before = module.removesuffix(_QKV[0])
            parts = [tensors.get(f"{before}{part}.{leaf}") for part in _QKV]
            whole = [part for part in parts if part is not None]
            if len(whole) == len(parts):
                fused[f"{before}attention.qkv.{leaf}"] = torch.cat(whole)
    return fused


def split_qkv(tensors: Tensors) -> Tensors:
    """Take query, key and value apart."""
    split = {}
    for name, tensor in tensors.items():
        before, qkv, leaf = name.partition("attention.qkv.")
        if not qkv:
            split[name] = tensor
            continue
        for part, piece in zip(_QKV, tensor.chunk(3), strict=True):
            split[f"{before}{part}.{leaf}"] = piece
    return split


LAYOUT = ForeignLayout(
    table=_TABLE,
    marker="embeddings.patch_embeddings.projection.weight",
    prefix="vit.",
    fuse=fuse_qkv,
    split=split_qkv,
)
"""ViTModel, models with it inside, and ViTMAEForPreTraining; written as the published files are."""
