"""MoCo v2: a view is to find the momentum encoder's key of another among those of a queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quadriga.surfaces.mmselfsup.lengths import Lengths
from quadriga.surfaces.mmselfsup.methods import parts
from quadriga.surfaces.mmselfsup.rows import honoured, no_effect
from quadriga.surfaces.mmselfsup.views import two_views

_SHUFFLED = 2
"""Groups of a process's images that are exchanged before the momentum encoder."""

ROWS = parts.method_rows(
    "MoCo",
    "He et al., CVPR 2020; Chen et al., 2020",
    honoured("MoCo.queue_len", "keys of the queue; the batch need not divide it"),
    honoured("MoCo.feat_dim", "must be the neck's out_channels"),
    honoured(
        "MoCo.momentum", "weight of the old momentum encoder in the new one, after every step"
    ),
    honoured("MoCoV2Neck", "two linear maps with ReLU between them"),
    honoured("MoCoV2Neck.in_channels", "must be what comes in"),
    honoured("MoCoV2Neck.hid_channels", "features of the hidden layer"),
    honoured("MoCoV2Neck.out_channels", "features that are compared"),
    honoured("MoCoV2Neck.with_avg_pool", "a head gets the mean of the maps", (True,)),
    no_effect("MoCoV2Neck.init_cfg", "the initial values are the method's own"),
)
"""The keys and types of MoCo's part of a config."""

views_of = two_views


def values_of(config: Mapping[str, Any], view_px: int, lengths: Lengths) -> dict[str, Any]:
    """Return the engine's ``model`` and ``objective``; see `mae.values_of`."""
    model = config["model"]
    backbone, group = parts.resnet(model, view_px, lengths)
    neck = model.get("neck") or {}
    parts.require_type(neck, "model.neck", "MoCoV2Neck")
    inputs = parts.width(backbone)
    parts.require(neck, "model.neck", in_channels=(inputs, inputs, "what comes in"))
    output = parts.need(neck, "model.neck", "out_channels")
    parts.require(model, "model", feat_dim=(output, 128, "model.neck.out_channels"))
    objective = {
        "kind": "moco",
        "temperature": parts.contrast(model.get("head"), "model.head"),
        "queue": model.get("queue_len", 65_536),
        "momentum": parts.momentum(model, "momentum", 0.999),
        "hidden_width": parts.need(neck, "model.neck", "hid_channels"),
        "output_width": output,
    }
    return {"model": backbone, "objective": objective | _shuffled(group, lengths)}


def _shuffled(group: int | None, lengths: Lengths) -> dict[str, Any]:
    """Return the groups of batch normalisation.

    The reference exchanges images between processes; here those of a process exchange between its
    halves, so that a run is the same on any number of them.
    """
    own = None if lengths.iteration is None else lengths.iteration // lengths.ranks
    if group is not None or own is None or own % _SHUFFLED or own < 2 * _SHUFFLED:
        return {"statistics_group": group, "shuffled_groups": 1}
    return {"statistics_group": own // _SHUFFLED, "shuffled_groups": _SHUFFLED}
