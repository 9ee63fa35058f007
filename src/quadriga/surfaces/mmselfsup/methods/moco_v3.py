"""MoCo v3: two views, each to find the momentum encoder's key of the other in the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quadriga.surfaces.mmselfsup.lengths import Lengths
from quadriga.surfaces.mmselfsup.methods import parts
from quadriga.surfaces.mmselfsup.methods.mae import ARCHITECTURES, vit
from quadriga.surfaces.mmselfsup.rows import honoured, no_effect
from quadriga.surfaces.mmselfsup.views import two_views

_CLASS = "the class token is what a head gets"

ROWS = parts.method_rows(
    "MoCoV3",
    "Chen et al., ICCV 2021",
    honoured(
        "MoCoV3.base_momentum",
        "weight of the old momentum encoder in the new one at the first step; rises to 1 along "
        "a cosine, once for each step of the optimizer",
    ),
    honoured("MoCoV3ViT", "a vision transformer with fixed positions"),
    honoured("MoCoV3ViT.arch", "its size by name, or a dict of sizes"),
    honoured("MoCoV3ViT.arch.embed_dims", "features of a token"),
    honoured("MoCoV3ViT.arch.num_layers", "blocks"),
    honoured("MoCoV3ViT.arch.num_heads", "attention heads"),
    honoured("MoCoV3ViT.arch.feedforward_channels", "hidden features of the MLP"),
    honoured("MoCoV3ViT.img_size", "side of the images, by default that of the view"),
    honoured("MoCoV3ViT.patch_size", "side of the patches"),
    honoured("MoCoV3ViT.stop_grad_conv1", "whether the patch projection is not trained"),
    honoured("MoCoV3ViT.drop_path_rate", "stochastic depth"),
    honoured("MoCoV3ViT.qkv_bias", "biases of query, key and value"),
    honoured("MoCoV3ViT.norm_cfg", "eps of the norms"),
    honoured("MoCoV3ViT.init_cfg", "weights to start from"),
    no_effect("MoCoV3ViT.frozen_stages", "every block is trained", (-1,)),
    no_effect("MoCoV3ViT.norm_eval", "there is no batch normalisation", (False,)),
    no_effect("MoCoV3ViT.out_indices", _CLASS, (-1,)),
    no_effect("MoCoV3ViT.final_norm", _CLASS, (True,)),
    no_effect("MoCoV3ViT.output_cls_token", _CLASS, (True,)),
    no_effect("MoCoV3ViT.in_channels", "images have three channels", (3,)),
    honoured("MoCoV3Head", "cross entropy over similarities with all images of the step"),
    honoured("MoCoV3Head.predictor", "the predictor"),
    honoured("MoCoV3Head.loss", "the cross entropy; its loss_weight must be 2 * temperature"),
    honoured("MoCoV3Head.temperature", "divides the similarities"),
)
"""The keys and types of MoCo v3's part of a config."""

views_of = two_views

_ARCHITECTURES = {
    **ARCHITECTURES,
    "mocov3-small": (384, 12, 12, 1536),
    "mocov3-base": ARCHITECTURES["base"],
}
_SHORT = {"mocov3-s": "mocov3-small", "mocov3-b": "mocov3-base"}


def values_of(config: Mapping[str, Any], view_px: int, lengths: Lengths) -> dict[str, Any]:
    """Return the engine's ``model`` and ``objective``; see `mae.values_of`."""
    model = config["model"]
    is_vit = model["backbone"]["type"] == "MoCoV3ViT"
    parts.require_type(model["backbone"], "model.backbone", "MoCoV3ViT", "ResNet")
    if is_vit:
        known = {**_ARCHITECTURES, **{k: _ARCHITECTURES[v] for k, v in _SHORT.items()}}
        backbone, group = vit(model["backbone"], view_px, known), None
    else:
        backbone, group = parts.resnet(model, view_px, lengths)
    hidden, output = parts.head(
        model.get("neck"),
        "model.neck",
        parts.width(backbone),
        layers=3 if is_vit else 2,
        last_norm=True,
        pools=not is_vit,
    )
    head, path = model.get("head") or {}, "model.head"
    parts.require_type(head, path, "MoCoV3Head")
    own = parts.head(head.get("predictor"), f"{path}.predictor", output, layers=2, last_norm=is_vit)
    parts.same_widths(f"{path}.predictor", own, (hidden, output))
    temperature = head.get("temperature", 1.0)
    weight = (head.get("loss") or {}).get("loss_weight", 1.0)
    if not math.isclose(weight, 2 * temperature):
        raise parts.unequal(f"{path}.loss.loss_weight", weight, "the method", 2 * temperature)
    return {
        "model": backbone,
        "objective": {
            "kind": "moco_v3",
            "temperature": temperature,
            "momentum": parts.momentum(model, "base_momentum"),
            "hidden_width": hidden,
            "output_width": output,
            "freeze_patches": is_vit and model["backbone"].get("stop_grad_conv1", False),
            "statistics_group": group,
        },
    }
