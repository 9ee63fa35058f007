"""Hugging Face's names of a BERT: BertModel and the models around it, older spellings too."""

from __future__ import annotations

import torch

from quadriga.errors import UserError
from quadriga.weights.names.huggingface import fuse_qkv, split_qkv
from quadriga.weights.names.table import ForeignLayout, NameTable, Tensors

_TABLE = NameTable(
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
    left_out=("embeddings.position_ids",),
)

_TIED = (
    ("head.decoder.weight", "encoder.embeddings.word.weight"),
    ("head.decoder.bias", "head.bias"),
)
"""Tensors that some files hold twice, and what they are copies of."""


def _spelling(name: str) -> str:
    """Return the present name of a tensor that older files call by TensorFlow's."""
    module, _, leaf = name.rpartition(".")
    if module.endswith("LayerNorm"):
        leaf = {"gamma": "weight", "beta": "bias"}.get(leaf, leaf)
    return f"{module}.{leaf}" if module else leaf


def _fuse(tensors: Tensors) -> Tensors:
    """Join query, key and value, and leave out copies of tied tensors.

    Raises:
        UserError: A copy is none: the file's decoder has weights of its own.
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


LAYOUT = ForeignLayout(
    table=_TABLE,
    marker="embeddings.word_embeddings.weight",
    prefix="bert.",
    fuse=_fuse,
    split=split_qkv,
    prefixed=("encoder.", "pooler."),
    spelling=_spelling,
)
"""BertModel, BertForPreTraining, BertForMaskedLM and BertForSequenceClassification."""
