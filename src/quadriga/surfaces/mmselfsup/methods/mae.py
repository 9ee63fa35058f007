"""MAE: a vision transformer that reconstructs masked patches, under the reference's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quadriga.errors import UserError, did_you_mean
from quadriga.surfaces.mmselfsup.lengths import Lengths
from quadriga.surfaces.mmselfsup.methods.parts import unequal
from quadriga.surfaces.mmselfsup.rows import Row, honoured, no_effect, refused
from quadriga.surfaces.mmselfsup.views import single_view

_NOT_BUILT = "not built for MAE"
_WHOLE = "the last layer's tokens, normalised, are what the decoder gets"

ROWS: tuple[Row, ...] = (
    honoured("MAE", "He et al., CVPR 2022"),
    honoured("MAE.data_preprocessor", "how pixels are normalised"),
    honoured("MAE.backbone", "the encoder"),
    honoured("MAE.neck", "the decoder"),
    honoured("MAE.head", "the target"),
    honoured("MAE.init_cfg", "initial values"),
    honoured("MAE.pretrained", "weights to start from"),
    refused("MAE.target_generator", _NOT_BUILT),
    honoured("MAEViT", "a vision transformer that sees the visible patches"),
    honoured("MAEViT.arch", "its size by name, or a dict of sizes"),
    honoured("MAEViT.arch.embed_dims", "features of a token"),
    honoured("MAEViT.arch.num_layers", "blocks"),
    honoured("MAEViT.arch.num_heads", "attention heads"),
    honoured("MAEViT.arch.feedforward_channels", "hidden features of the MLP"),
    honoured("MAEViT.img_size", "side of the images, by default that of the view"),
    honoured("MAEViT.patch_size", "side of the patches"),
    honoured("MAEViT.mask_ratio", "share of masked patches"),
    honoured("MAEViT.drop_path_rate", "stochastic depth"),
    honoured("MAEViT.qkv_bias", "biases of query, key and value"),
    honoured("MAEViT.norm_cfg", "eps of the norms"),
    honoured("MAEViT.init_cfg", "weights to start from"),
    refused("MAEViT.drop_rate", _NOT_BUILT, (0, 0.0)),
    no_effect("MAEViT.out_indices", _WHOLE, (-1,)),
    no_effect("MAEViT.final_norm", _WHOLE, (True,)),
    no_effect("MAEViT.output_cls_token", _WHOLE, (True,)),
    no_effect("MAEViT.interpolate_mode", "positions are computed for the grid"),
    no_effect("MAEViT.in_channels", "images have three channels", (3,)),
    refused("MAEViT.patch_cfg", _NOT_BUILT, ({},)),
    refused("MAEViT.layer_cfgs", _NOT_BUILT, ({},)),
    honoured("MAEPretrainDecoder", "a transformer that predicts pixels"),
    honoured("MAEPretrainDecoder.num_patches", "must be that of the backbone's grid"),
    honoured("MAEPretrainDecoder.patch_size", "must be the backbone's"),
    no_effect("MAEPretrainDecoder.in_chans", "images have three channels", (3,)),
    honoured("MAEPretrainDecoder.embed_dim", "must be the backbone's"),
    honoured("MAEPretrainDecoder.decoder_embed_dim", "features of a token"),
    honoured("MAEPretrainDecoder.decoder_depth", "blocks"),
    honoured("MAEPretrainDecoder.decoder_num_heads", "attention heads"),
    honoured("MAEPretrainDecoder.mlp_ratio", "must be the backbone's"),
    honoured("MAEPretrainDecoder.norm_cfg", "must have the backbone's eps"),
    refused("MAEPretrainDecoder.predict_feature_dim", _NOT_BUILT),
    refused("MAEPretrainDecoder.init_cfg", "its values are MAE's own"),
    honoured("MAEPretrainHead", "the mean squared error of masked patches"),
    honoured("MAEPretrainHead.norm_pix", "targets normalised by patch"),
    honoured("MAEPretrainHead.patch_size", "must be the backbone's"),
    no_effect("MAEPretrainHead.in_channels", "images have three channels", (3,)),
    honoured("MAEPretrainHead.loss", "MAE has one loss"),
    no_effect("MAEReconstructionLoss", "MAE has one loss"),
    refused("PixelReconstructionLoss", "MAE has one loss, MAEReconstructionLoss"),
    no_effect("Xavier", "linear maps start so"),
    no_effect("Xavier.layer", "linear maps start so", ("Linear", ["Linear"])),
    no_effect("Xavier.distribution", "linear maps start so", ("uniform",)),
    no_effect("Xavier.gain", "linear maps start so", (1, 1.0)),
    no_effect("Xavier.bias", "linear maps start so", (0, 0.0)),
    no_effect("Constant", "norms start so"),
    no_effect("Constant.layer", "norms start so", ("LayerNorm", ["LayerNorm"])),
    no_effect("Constant.val", "norms start so", (1, 1.0)),
    no_effect("Constant.bias", "norms start so", (0, 0.0)),
)
"""The keys and types of MAE's part of a config."""

ARCHITECTURES = {
    "small": (768, 8, 8, 2304),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
    "deit-tiny": (192, 12, 3, 768),
    "deit-small": (384, 12, 6, 1536),
    "deit-base": (768, 12, 12, 3072),
}
"""Name -> width, blocks, heads, hidden features of the MLP."""

_SHORT = {"s": "small", "b": "base", "l": "large", "h": "huge", "deit-t": "deit-tiny"}
_SHORT |= {"deit-s": "deit-small", "deit-b": "deit-base"}
_SIZES = ("embed_dims", "num_layers", "num_heads", "feedforward_channels")


views_of = single_view


def values_of(config: Mapping[str, Any], view_px: int, lengths: Lengths) -> dict[str, Any]:
    """Return the engine's ``model`` and ``objective``.

    Args:
        config: The config, each key of which the table knows.
        view_px: Side of the views.
        lengths: Batch and steps.

    Raises:
        UserError: The parts contradict each other.
    """
    model = config["model"]
    backbone, neck, head = model["backbone"], model.get("neck") or {}, model.get("head") or {}
    known = {**ARCHITECTURES, **{short: ARCHITECTURES[name] for short, name in _SHORT.items()}}
    encoder = vit(backbone, view_px, known)
    patch_px, ratio = encoder["patch_px"], encoder["mlp_ratio"]
    agree = {
        "neck.patch_size": (neck, patch_px),
        "neck.embed_dim": (neck, encoder["width"]),
        "neck.num_patches": (neck, (view_px // patch_px) ** 2),
        "neck.mlp_ratio": (neck, ratio),
        "head.patch_size": (head, patch_px),
    }
    for name, (part, wanted) in agree.items():
        given = part.get(name.partition(".")[2], wanted)
        if given != wanted:
            raise unequal(f"model.{name}", given, "model.backbone", wanted)
    if _eps(neck) != encoder["norm_eps"]:
        wanted = encoder["norm_eps"]
        raise unequal("model.neck.norm_cfg.eps", _eps(neck), "model.backbone", wanted)
    return {
        "model": encoder,
        "objective": {
            "kind": "mae",
            "mask_ratio": backbone.get("mask_ratio", 0.75),
            "decoder_width": neck.get("decoder_embed_dim", 512),
            "decoder_depth": neck.get("decoder_depth", 8),
            "decoder_heads": neck.get("decoder_num_heads", 16),
            "normalise_pixels": head.get("norm_pix", False),
        },
    }


def vit(
    backbone: Mapping[str, Any], view_px: int, known: Mapping[str, tuple[int, int, int, int]]
) -> dict[str, Any]:
    """Return the engine's ``model`` of a vision transformer.

    Args:
        backbone: Its dict.
        view_px: Side of the views.
        known: Name of an architecture -> width, blocks, heads, hidden features of the MLP.

    Raises:
        UserError: The architecture is unknown, or the side is not that of the views.
    """
    width, depth, heads, hidden = _sizes(backbone.get("arch", "base"), known)
    image_px, patch_px = backbone.get("img_size", view_px), backbone.get("patch_size", 16)
    if image_px != view_px:
        raise unequal("model.backbone.img_size", image_px, "the view of train_dataloader", view_px)
    return {
        "kind": "vit",
        "image_px": image_px,
        "patch_px": patch_px,
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": hidden / width,
        "drop_path": backbone.get("drop_path_rate", 0.0),
        "qkv_bias": backbone.get("qkv_bias", True),
        "norm_eps": _eps(backbone),
    }


def _sizes(arch: Any, known: Mapping[str, tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    if isinstance(arch, Mapping):
        absent = [name for name in _SIZES if name not in arch]
        if absent:
            raise UserError(f"model.backbone.arch must have {absent[0]}, but has none; add it")
        return tuple(arch[name] for name in _SIZES)
    if str(arch) not in known:
        raise UserError(
            f"model.backbone.arch must be one of {', '.join(known)}, or a dict of sizes, but is "
            f"{arch}{did_you_mean(str(arch), known)}"
        )
    return known[str(arch)]


def _eps(part: Mapping[str, Any]) -> float:
    return float((part.get("norm_cfg") or {}).get("eps", 1e-6))
