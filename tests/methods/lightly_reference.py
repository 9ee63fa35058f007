"""The losses of `lightly`, an independent implementation that the tests compare with.

It is no dependency of ours and has many of its own, most of which its losses do not need:

    pip install --no-deps lightly==1.6.0 torchvision==0.28.0 tqdm
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch

VERSION = "1.6.0"
"""Older ones have errors that were found later, such as #1827 and #1923 of its issues."""


def lightly_class(path: str) -> Any:
    """Return ``module:Class`` of lightly; the calling test is skipped where lightly is missing."""
    try:
        found = version("lightly")
    except PackageNotFoundError:
        found = "missing"
    if found != VERSION:
        pytest.skip(f"needs lightly {VERSION}, which is {found}")
    _register_torchvision()
    module, name = path.split(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module(module), name)


@cache
def _register_torchvision() -> torch.library.Library | None:
    """Declare two operators without which torchvision is not imported beside a torch for CPUs."""
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
