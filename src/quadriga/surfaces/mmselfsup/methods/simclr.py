"""SimCLR: two views of an image are to find each other among all views of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quadriga.surfaces.mmselfsup.lengths import Lengths
from quadriga.surfaces.mmselfsup.methods import parts
from quadriga.surfaces.mmselfsup.views import two_views

ROWS = parts.method_rows("SimCLR", "Chen et al., ICML 2020")
"""The keys and types of SimCLR's part of a config."""

views_of = two_views


def values_of(config: Mapping[str, Any], view_px: int, lengths: Lengths) -> dict[str, Any]:
    """Return the engine's ``model`` and ``objective``; see `mae.values_of`."""
    model = config["model"]
    backbone, group = parts.resnet(model, view_px, lengths)
    hidden, output = parts.head(
        model.get("neck"),
        "model.neck",
        parts.width(backbone),
        layers=2,
        last_norm=True,
        affine=None,
        pools=True,
    )
    return {
        "model": backbone,
        "objective": {
            "kind": "simclr",
            "temperature": parts.contrast(model.get("head"), "model.head"),
            "hidden_width": hidden,
            "output_width": output,
            "last_affine": model["neck"].get("with_last_bn_affine", True),
            "statistics_group": group,
        },
    }
