"""Barlow Twins: each feature of two views is to agree with itself and with no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quadriga.surfaces.mmselfsup.lengths import Lengths
from quadriga.surfaces.mmselfsup.methods import parts
from quadriga.surfaces.mmselfsup.rows import honoured
from quadriga.surfaces.mmselfsup.views import two_views

ROWS = parts.method_rows(
    "BarlowTwins",
    "Zbontar et al., ICML 2021",
    honoured("LatentCrossCorrelationHead", "the correlations of two views over the step"),
    honoured("LatentCrossCorrelationHead.in_channels", "must be the neck's out_channels"),
    honoured("LatentCrossCorrelationHead.loss", "the loss"),
    honoured("CrossCorrelationLoss", "distance of the correlations from the identity"),
    honoured("CrossCorrelationLoss.lambda_", "weight of those between different features"),
)
"""The keys and types of Barlow Twins' part of a config."""

views_of = two_views


def values_of(config: Mapping[str, Any], view_px: int, lengths: Lengths) -> dict[str, Any]:
    """Return the engine's ``model`` and ``objective``; see `mae.values_of`."""
    model = config["model"]
    backbone, group = parts.resnet(model, view_px, lengths)
    inputs = parts.width(backbone)
    hidden, output = parts.head(model.get("neck"), "model.neck", inputs, layers=3, pools=True)
    head = model.get("head") or {}
    parts.require_type(head, "model.head", "LatentCrossCorrelationHead")
    parts.require(head, "model.head", in_channels=(output, output, "model.neck.out_channels"))
    return {
        "model": backbone,
        "objective": {
            "kind": "barlow_twins",
            "redundancy_weight": (head.get("loss") or {}).get("lambda_", 0.0051),
            "hidden_width": hidden,
            "output_width": output,
            "statistics_group": group,
        },
    }
