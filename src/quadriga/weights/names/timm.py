"""timm's names of a vision transformer, with those of the reference MAE for its decoder."""

from __future__ import annotations

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


def _fuse(tensors: Tensors) -> Tensors:
    return tensors


def _split(tensors: Tensors) -> Tensors:
    """Fold the class token's position into the token where there are registers.

    With registers timm gives positions to the patches only.
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
    table=_TABLE, marker="patch_embed.proj.weight", prefix="", fuse=_fuse, split=_split
)
"""timm's models, and the reference implementation of MAE."""
