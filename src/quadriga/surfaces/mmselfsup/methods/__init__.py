"""Methods of the surface, one file each: its rows of the table, and its config as the engine's."""

from __future__ import annotations

from types import ModuleType

from quadriga.surfaces.mmselfsup.methods import mae

METHODS: dict[str, ModuleType] = {"MAE": mae}
"""Type of the model -> module with ``ROWS`` and ``values_of``."""

NOT_BUILT = {
    "BarlowTwins": "Barlow Twins",
    "BEiT": "BEiT and BEiT v2",
    "BYOL": "BYOL",
    "CAE": "CAE",
    "DeepCluster": "DeepCluster",
    "DenseCL": "DenseCL",
    "DINO": "DINO",
    "EVA": "EVA",
    "MaskFeat": "MaskFeat",
    "MILAN": "MILAN",
    "MixMIM": "MixMIM",
    "MoCo": "MoCo v1 and v2",
    "MoCoV3": "MoCo v3",
    "NPID": "NPID",
    "ODC": "ODC",
    "PixMIM": "PixMIM",
    "RelativeLoc": "Relative Location",
    "RotationPred": "Rotation Prediction",
    "SimCLR": "SimCLR",
    "SimMIM": "SimMIM",
    "SimSiam": "SimSiam",
    "SwAV": "SwAV",
}
"""Type of the model -> name of a method that is refused by it."""

FOLDERS = {
    "barlowtwins": "Barlow Twins",
    "mocov1": "MoCo v1",
    "mocov2": "MoCo v2",
    "mocov3": "MoCo v3",
    "relative_loc": "Relative Location",
    "rotation_pred": "Rotation Prediction",
} | {
    name.lower(): name
    for name in NOT_BUILT
    if name not in ("BarlowTwins", "MoCo", "MoCoV3", "RelativeLoc", "RotationPred")
}
"""Folder below ``configs/selfsup`` -> name of its method."""
