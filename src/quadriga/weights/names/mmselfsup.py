"""Names of a vision transformer in checkpoints of mmselfsup and mmpretrain, with MAE's decoder."""

from __future__ import annotations

from quadriga.weights.names.table import ForeignLayout, NameTable
from quadriga.weights.names.timm import as_it_is

TABLE = NameTable(
    stems=(
        ("patch_embed.projection", "encoder.patch_projection"),
        ("cls_token", "encoder.class_token"),
        ("pos_embed", "encoder.positions"),
        ("ln1", "encoder.norm"),
        ("neck.mask_token", "decoder.mask_token"),
        ("neck.decoder_embed", "decoder.embed"),
        ("neck.decoder_pos_embed", "decoder.positions"),
        ("neck.ln1", "decoder.norm"),
        ("neck.decoder_pred", "decoder.head"),
    ),
    blocks=(("layers.", "encoder.blocks."), ("neck.decoder_blocks.", "decoder.blocks.")),
    parts=(
        ("ln1", "attention_norm"),
        ("attn.qkv", "attention.qkv"),
        ("attn.proj", "attention.output"),
        ("ln2", "mlp_norm"),
        ("ffn.layers.0.0", "mlp.hidden"),
        ("ffn.layers.1", "mlp.output"),
    ),
    skipped=("data_preprocessor.", "target_generator.", "head."),
)

LAYOUT = ForeignLayout(
    table=TABLE,
    marker="patch_embed.projection.weight",
    prefix="backbone.",
    fuse=as_it_is,
    split=as_it_is,
)
"""A pre-trained model (``backbone.*``, ``neck.*``), a classifier, or an extracted backbone."""
