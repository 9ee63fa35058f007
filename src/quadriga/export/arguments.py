"""Translates a model's config to the arguments of other libraries' classes.

A model that a library cannot express is refused; the error names the layouts that can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quadriga.errors import UserError
from quadriga.models.bert import BertConfig
from quadriga.models.vit import ViTConfig

_TIMM_NORM_EPS = 1e-6


def timm_arguments(model: ViTConfig, classes: int = 0) -> dict[str, Any]:
    """Return the arguments of timm's ``VisionTransformer``.

    Args:
        model: The encoder.
        classes: Classes of the classifier; 0 for a feature extractor without one.

    Raises:
        UserError: timm has no argument for a value of the model.
    """
    problems = []
    if model.norm_eps != _TIMM_NORM_EPS:
        problems.append((f"model.norm_eps={model.norm_eps:g}", "hf and safetensors"))
    _refuse("timm", problems)
    return {
        "img_size": model.image_px,
        "patch_size": model.patch_px,
        "in_chans": model.channels,
        "num_classes": classes,
        "global_pool": "token" if model.pool == "class" else "avg",
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": model.mlp_ratio,
        "qkv_bias": model.qkv_bias,
        "init_values": model.layer_scale,
        "class_token": model.class_token,
        "reg_tokens": model.registers,
        # The export adds the class token's position to the token where there are registers.
        "no_embed_class": model.registers > 0,
        # Tokens are normalised, then averaged; timm's default averages first.
        "fc_norm": False,
        "drop_path_rate": model.drop_path,
    }


def hf_arguments(
    model: ViTConfig,
    method: Mapping[str, Any] | None = None,
    classes: int = 0,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the config.json of one of Hugging Face's classes of vision transformers.

    ViTModel, ViTForImageClassification with `classes`, or ViTMAEForPreTraining with `method`.

    Args:
        model: The encoder.
        method: An MAE's config as plain values, for encoder and decoder; None for the encoder.
        classes: Classes of a classifier on the class token; 0 for none.
        names: Names of the first classes; the others are ``LABEL_N``.

    Raises:
        UserError: The class has no argument for a value of the model.
    """
    problems = []
    if not model.class_token:
        problems.append(("model.class_token=false", "timm and safetensors"))
    if model.registers:
        problems.append((f"model.registers={model.registers}", "timm and safetensors"))
    if model.layer_scale is not None:
        problems.append((f"model.layer_scale={model.layer_scale:g}", "timm and safetensors"))
    if classes and model.pool != "class":
        problems.append((f"a classifier on model.pool={model.pool}", "timm and safetensors"))
    _refuse("hf", problems)
    arguments: dict[str, Any] = {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": int(model.width * model.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": model.norm_eps,
        "image_size": model.image_px,
        "patch_size": model.patch_px,
        "num_channels": model.channels,
        "qkv_bias": model.qkv_bias,
        "dtype": "float32",
    }
    if classes:
        head = {"architectures": ["ViTForImageClassification"], "model_type": "vit"}
        return {**head, **arguments, **_labels(classes, names)}
    if method is None:
        return {"architectures": ["ViTModel"], "model_type": "vit", **arguments}
    width = int(method["decoder_width"])
    decoder = {
        "decoder_hidden_size": width,
        "decoder_num_hidden_layers": method["decoder_depth"],
        "decoder_num_attention_heads": method["decoder_heads"],
        "decoder_intermediate_size": int(width * model.mlp_ratio),
        "mask_ratio": method["mask_ratio"],
        "norm_pix_loss": method["normalise_pixels"],
    }
    head = {"architectures": ["ViTMAEForPreTraining"], "model_type": "vit_mae"}
    return {**head, **arguments, **decoder}


def _labels(classes: int, names: Sequence[str]) -> dict[str, Any]:
    named = [*names, *(f"LABEL_{number}" for number in range(len(names), classes))]
    return {
        "id2label": {str(number): name for number, name in enumerate(named)},
        "label2id": {name: number for number, name in enumerate(named)},
    }


def hf_bert_arguments(model: BertConfig, architecture: str) -> dict[str, Any]:
    """Return the config.json of Hugging Face's BERT class `architecture`."""
    return {
        "architectures": [architecture],
        "model_type": "bert",
        "vocab_size": model.vocabulary_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": model.mlp_width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "max_position_embeddings": model.max_positions,
        "type_vocab_size": model.segment_types,
        "layer_norm_eps": model.norm_eps,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "dtype": "float32",
    }


def _refuse(layout: str, problems: Sequence[tuple[str, str]]) -> None:
    if problems:
        value, others = problems[0]
        raise UserError(f"the layout {layout} cannot express {value}; {others} can: use --to")
