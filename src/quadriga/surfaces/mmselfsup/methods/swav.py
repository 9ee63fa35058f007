"""SwAV: views of an image predict each other's assignment to prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quadriga.surfaces.mmselfsup.lengths import Lengths
from quadriga.surfaces.mmselfsup.methods import parts
from quadriga.surfaces.mmselfsup.rows import honoured, no_effect, refused
from quadriga.surfaces.mmselfsup.views import crops

ROWS = (
    *parts.method_rows("SwAV", "Caron et al., NeurIPS 2020"),
    honoured("SwAVNeck", "two linear maps with batch normalisation and ReLU between them"),
    honoured("SwAVNeck.in_channels", "must be what comes in"),
    honoured("SwAVNeck.hid_channels", "features of the hidden layer"),
    honoured("SwAVNeck.out_channels", "features that are compared with the prototypes"),
    honoured("SwAVNeck.with_avg_pool", "a head gets the mean of the maps", (True,)),
    refused("SwAVNeck.with_l2norm", "embeddings are of unit length", (True,)),
    no_effect("SwAVNeck.with_bias", "the normalisation subtracts the first map's", (True,)),
    no_effect("SwAVNeck.norm_cfg", "batch normalisation of a head always spans the step"),
    no_effect("SwAVNeck.init_cfg", "the initial values are the method's own"),
    honoured("SwAVHead", "the loss"),
    honoured("SwAVHead.loss", "the loss"),
    honoured("SwAVLoss", "swapped prediction of assignments, balanced over all processes"),
    honoured("SwAVLoss.feat_dim", "must be the neck's out_channels"),
    honoured("SwAVLoss.sinkhorn_iterations", "iterations that balance the assignments"),
    honoured("SwAVLoss.epsilon", "regularisation of the assignments"),
    honoured("SwAVLoss.temperature", "of the predictions"),
    honoured("SwAVLoss.num_prototypes", "clusters"),
    honoured("SwAVLoss.num_crops", "must be that of the views"),
    honoured("SwAVLoss.crops_for_assign", "the two large views", ([0, 1],)),
    no_effect("SwAVLoss.init_cfg", "the initial values are the method's own"),
    honoured("SwAVHook", "the queue, and prototypes that rest at first"),
    honoured("SwAVHook.queue_length", "embeddings of the queue, over all processes"),
    honoured("SwAVHook.epoch_queue_starts", "epoch from which the queue fills"),
    honoured("SwAVHook.crops_for_assign", "the two large views", ([0, 1],)),
    honoured("SwAVHook.feat_dim", "must be the neck's out_channels"),
    honoured("SwAVHook.frozen_layers_cfg", "what is not trained at first"),
    honoured("SwAVHook.frozen_layers_cfg.prototypes", "iterations without the prototypes"),
    refused("SwAVHook.interval", "the queue takes every step", (1,)),
    no_effect("SwAVHook.batch_size", "the batch need not divide the queue"),
    no_effect("SwAVHook.priority", "hooks are no code here"),
)
"""The keys and types of SwAV's part of a config."""

views_of = crops


def values_of(config: Mapping[str, Any], view_px: int, lengths: Lengths) -> dict[str, Any]:
    """Return the engine's ``model`` and ``objective``; see `mae.values_of`."""
    model = config["model"]
    backbone, group = parts.resnet(model, view_px, lengths)
    neck, inputs = model.get("neck") or {}, parts.width(backbone)
    parts.require_type(neck, "model.neck", "SwAVNeck")
    parts.require(neck, "model.neck", in_channels=(inputs, inputs, "what comes in"))
    output = parts.need(neck, "model.neck", "out_channels")
    head = model.get("head") or {}
    parts.require_type(head, "model.head", "SwAVHead")
    loss, path = head.get("loss") or {}, "model.head.loss"
    pipeline = config["train_dataloader"]["dataset"]["pipeline"]
    views = pipeline[1]["num_views"]
    numbers = views if isinstance(views, list) else [views]
    parts.require(
        loss,
        path,
        feat_dim=(output, None, "model.neck.out_channels"),
        num_crops=(numbers, [2], "train_dataloader.dataset.pipeline.1.num_views"),
    )
    objective = {
        "kind": "swav",
        "prototypes": loss.get("num_prototypes", 3000),
        "hidden_width": parts.need(neck, "model.neck", "hid_channels"),
        "output_width": output,
        "temperature": loss.get("temperature", 0.1),
        "epsilon": loss.get("epsilon", 0.05),
        "sinkhorn_iterations": loss.get("sinkhorn_iterations", 3),
        "statistics_group": group,
        "queue": 0,
        "frozen_epochs": 0.0,
    }
    for place, hook in enumerate(config.get("custom_hooks") or []):
        if hook["type"] == "SwAVHook":
            objective |= _hook(hook, f"custom_hooks.{place}", output, lengths)
    return {"model": backbone, "objective": objective}


def _hook(hook: parts.Part, path: str, output: int, lengths: Lengths) -> dict[str, Any]:
    parts.require(hook, path, feat_dim=(output, output, "model.neck.out_channels"))
    frozen = (hook.get("frozen_layers_cfg") or {}).get("prototypes", 0)
    return {
        "queue": hook.get("queue_length", 0),
        "queue_start_epoch": hook.get("epoch_queue_starts", 15),
        "frozen_epochs": frozen / (lengths.epoch_steps * lengths.accumulate),
    }
