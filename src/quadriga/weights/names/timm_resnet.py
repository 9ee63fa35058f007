"""torchvision's names of a residual network, which timm shares."""

from __future__ import annotations

import torch

from quadriga.weights.names.table import ForeignLayout, NameTable, Tensors

_TABLE = NameTable(
    stems=(("conv1", "encoder.stem.conv"), ("bn1", "encoder.stem.norm"), ("fc", "head")),
    blocks=tuple((f"layer{i + 1}.", f"encoder.stages.{i}.blocks.") for i in range(4)),
    parts=(
        ("conv1", "conv1"),
        ("bn1", "norm1"),
        ("conv2", "conv2"),
        ("bn2", "norm2"),
        ("conv3", "conv3"),
        ("bn3", "norm3"),
        ("downsample.0", "shortcut.conv"),
        ("downsample.1", "shortcut.norm"),
    ),
    skipped=(),
)


def _fuse(tensors: Tensors) -> Tensors:
    """Add the counts of steps, which files from before torch 0.4.1 lack: nothing depends on them.

    torchvision's published ResNet-18, -34 and -50 are such files.
    """
    means = [name for name in tensors if name.endswith("running_mean")]
    counts = [name.replace("running_mean", "num_batches_tracked") for name in means]
    return {**tensors, **{name: torch.tensor(0) for name in counts if name not in tensors}}


def _split(tensors: Tensors) -> Tensors:
    return tensors


LAYOUT = ForeignLayout(
    table=_TABLE, marker="layer1.0.conv1.weight", prefix="", fuse=_fuse, split=_split
)
"""ResNet-18, -34 and -50 of torchvision and timm, whatever the kernel of their stem."""
