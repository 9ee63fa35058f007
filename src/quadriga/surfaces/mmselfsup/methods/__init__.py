"""Methods of the surface, one file each: its rows of the table, and its config as the engine's."""

from __future__ import annotations

from types import ModuleType

from quadriga.surfaces.mmselfsup.methods import (
    barlow_twins,
    byol,
    mae,
    moco,
    moco_v3,
    simclr,
    simsiam,
    swav,
)

METHODS: dict[str, ModuleType] = {
    "BarlowTwins": barlow_twins,
    "BYOL": byol,
    "MAE": mae,
    "MoCo": moco,
    "MoCoV3": moco_v3,
    "SimCLR": simclr,
    "SimSiam": simsiam,
    "SwAV": swav,
}
"""Type of the model -> module with ``ROWS``, ``views_of`` and ``values_of``."""

HOOKS = {"SimSiamHook": "SimSiam", "SwAVHook": "SwAV"}
"""Type of a hook -> the only type of a model that has it."""

NOT_BUILT = {
    "BEiT": "BEiT and BEiT v2",
    "CAE": "CAE",
    "DeepCluster": "DeepCluster",
    "DenseCL": "DenseCL",
    "DINO": "DINO",
    "EVA": "EVA",
    "MaskFeat": "MaskFeat",
    "MILAN": "MILAN",
    "MixMIM": "MixMIM",
    "NPID": "NPID",
    "ODC": "ODC",
    "PixMIM": "PixMIM",
    "RelativeLoc": "Relative Location",
    "RotationPred": "Rotation Prediction",
    "SimMIM": "SimMIM",
}
"""Type of the model -> name of a method that is refused by it."""

FOLDERS = {
    "mocov1": "MoCo v1",
    "relative_loc": "Relative Location",
    "rotation_pred": "Rotation Prediction",
} | {name.lower(): name for name in NOT_BUILT if name not in ("RelativeLoc", "RotationPred")}
"""Folder below ``configs/selfsup`` -> name of its method."""
