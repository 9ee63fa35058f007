"""BYOL: the encoder predicts from one view what its moving average makes of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quadriga.surfaces.mmselfsup.lengths import Lengths
from quadriga.surfaces.mmselfsup.methods import parts
from quadriga.surfaces.mmselfsup.rows import honoured
from quadriga.surfaces.mmselfsup.views import two_views

ROWS = parts.method_rows(
    "BYOL",
    "Grill et al., NeurIPS 2020",
    honoured(
        "BYOL.base_momentum",
        "weight of the old moving average in the new one at the first step; rises to 1 along "
        "a cosine, once for each step of the optimizer",
    ),
)
"""The keys and types of BYOL's part of a config."""

views_of = two_views


def values_of(config: Mapping[str, Any], view_px: int, lengths: Lengths) -> dict[str, Any]:
    """Return the engine's ``model`` and ``objective``; see `mae.values_of`."""
    model = config["model"]
    backbone, group = parts.resnet(model, view_px, lengths)
    inputs = parts.width(backbone)
    hidden, output = parts.head(model.get("neck"), "model.neck", inputs, layers=2, pools=True)
    head, path = model.get("head") or {}, "model.head"
    parts.require_type(head, path, "LatentPredictHead")
    own = parts.head(head.get("predictor"), f"{path}.predictor", output, layers=2)
    parts.same_widths(f"{path}.predictor", own, (hidden, output))
    return {
        "model": backbone,
        "objective": {
            "kind": "byol",
            "momentum": parts.momentum(model, "base_momentum"),
            "hidden_width": hidden,
            "output_width": output,
            "statistics_group": group,
        },
    }
