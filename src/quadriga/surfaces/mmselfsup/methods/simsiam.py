"""SimSiam: the encoder predicts its own output for another view, to which no gradient flows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quadriga.surfaces.mmselfsup.lengths import Lengths
from quadriga.surfaces.mmselfsup.methods import parts
from quadriga.surfaces.mmselfsup.rows import honoured, no_effect
from quadriga.surfaces.mmselfsup.views import two_views

ROWS = (
    *parts.method_rows("SimSiam", "Chen and He, CVPR 2021"),
    honoured("SimSiamHook", "a constant rate of the parameters with fix_lr"),
    honoured("SimSiamHook.fix_pred_lr", "whether it is constant"),
    honoured("SimSiamHook.lr", "that rate, at the batch of record"),
    no_effect("SimSiamHook.adjust_by_epoch", "the rate is constant"),
    no_effect("SimSiamHook.priority", "hooks are no code here"),
)
"""The keys and types of SimSiam's part of a config."""

views_of = two_views


def values_of(config: Mapping[str, Any], view_px: int, lengths: Lengths) -> dict[str, Any]:
    """Return the engine's ``model`` and ``objective``; see `mae.values_of`."""
    model = config["model"]
    backbone, group = parts.resnet(model, view_px, lengths)
    inputs = parts.width(backbone)
    inner, output = parts.head(
        model.get("neck"), "model.neck", inputs, layers=3, last_norm=True, pools=True
    )
    if inner != output:
        raise parts.unequal("model.neck.hid_channels", inner, "model.neck.out_channels", output)
    head, path = model.get("head") or {}, "model.head"
    parts.require_type(head, path, "LatentPredictHead")
    predictor = f"{path}.predictor"
    own = parts.head(head.get("predictor"), predictor, output, layers=2, last_bias=True)
    parts.same_widths(predictor, own, (own[0], output))
    return {
        "model": backbone,
        "objective": {
            "kind": "simsiam",
            "output_width": output,
            "hidden_width": own[0],
            "statistics_group": group,
        },
    }
