"""Hugging Face's names of a ViT and of a BERT, in all spellings found in files.

ViT: ViTModel, ViTForImageClassification and ViTMAEForPreTraining. BERT: BertModel and the models
that contain it.
"""

from __future__ import annotations

import torch

from quadriga.errors import UserError
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
    skipped=("pooler.", "embeddings.mask_token"),
)


def fuse_qkv(tensors: Tensors) -> Tensors:
    """Concatenate query, key and value along dimension 0; incomplete triples are dropped."""
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
    """Split the fused query, key and value; the inverse of `fuse_qkv`."""
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
"""ViTModel, models that contain it, and ViTMAEForPreTraining; exports use the names of the
published files."""


_BERT_TABLE = NameTable(
    stems=(
        ("embeddings.word_embeddings", "encoder.embeddings.word"),
        ("embeddings.position_embeddings", "encoder.embeddings.position"),
        ("embeddings.token_type_embeddings", "encoder.embeddings.segment"),
        ("embeddings.LayerNorm", "encoder.embeddings.norm"),
        ("pooler.dense", "pooler.dense"),
        ("cls.predictions.transform.dense", "head.transform"),
        ("cls.predictions.transform.LayerNorm", "head.norm"),
        ("cls.predictions.bias", "head.bias"),
        ("cls.predictions.decoder", "head.decoder"),
        ("cls.seq_relationship", "next_sentence"),
        ("classifier", "classifier"),
    ),
    blocks=(("encoder.layer.", "encoder.blocks."),),
    parts=(
        ("attention.self.query", "attention.query"),
        ("attention.self.key", "attention.key"),
        ("attention.self.value", "attention.value"),
        ("attention.output.dense", "attention.output"),
        ("attention.output.LayerNorm", "attention_norm"),
        ("intermediate.dense", "mlp.hidden"),
        ("output.dense", "mlp.output"),
        ("output.LayerNorm", "mlp_norm"),
    ),
    skipped=("embeddings.position_ids",),
)

_TIED = (
    ("head.decoder.weight", "encoder.embeddings.word.weight"),
    ("head.decoder.bias", "head.bias"),
)
"""(copy, original) of tensors that some files hold twice."""


def _spelling(name: str) -> str:
    """Return today's name of a tensor; older files use TensorFlow's gamma and beta."""
    module, _, leaf = name.rpartition(".")
    if module.endswith("LayerNorm"):
        leaf = {"gamma": "weight", "beta": "bias"}.get(leaf, leaf)
    return f"{module}.{leaf}" if module else leaf


def _fuse(tensors: Tensors) -> Tensors:
    """Fuse query, key and value, and drop copies of tied tensors.

    Raises:
        UserError: A copy differs from its original: the file's decoder is not tied.
    """
    fused = fuse_qkv(tensors)
    for copy, original in _TIED:
        value = fused.pop(copy, None)
        if value is None:
            continue
        if original in fused and not torch.equal(value, fused[original]):
            raise UserError(
                f"the file's {copy} must be tied to {original}, but has values of its own; a BERT "
                "here predicts words with the table it embeds them with: tie the two and save again"
            )
        fused.setdefault(original, value)
    return fused


BERT_LAYOUT = ForeignLayout(
    table=_BERT_TABLE,
    marker="embeddings.word_embeddings.weight",
    prefix="bert.",
    fuse=_fuse,
    split=split_qkv,
    prefixed=("encoder.", "pooler."),
    spelling=_spelling,
)
"""BertModel, BertForPreTraining, BertForMaskedLM and BertForSequenceClassification."""
