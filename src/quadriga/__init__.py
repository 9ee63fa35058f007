"""Quadriga pre-trains transformers: four kinds of pre-training on one engine.

The names in `__all__` are those of `quadriga.api`, which is imported when one of them is first
used, since it imports torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quadriga.api import evaluate, load_code, load_encoder, recipe, train

__version__ = "0.1.0"

__all__ = ["evaluate", "load_code", "load_encoder", "recipe", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("quadriga.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
