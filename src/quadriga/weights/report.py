"""The outcome of loading a file of weights, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SHOWN = 8
"""Number of names that are listed; the rest is counted."""


@dataclass(frozen=True, kw_only=True)
class Remedies:
    """What an error message advises, in terms of the interface that the user called."""

    loose: str
    """How to allow tensors that are missing, unexpected or of other shapes."""
    resample: str
    """How to allow resampling of tables of positions."""


IN_PYTHON = Remedies(loose="pass strict=False", resample="pass interpolate=True")


@dataclass(frozen=True, kw_only=True)
class WeightReport:
    """The outcome of loading weights; `str` gives readable text."""

    path: Path
    layout: str
    matched: tuple[str, ...]
    """The module's tensors that were filled, by the module's names."""
    missing: tuple[str, ...] = ()
    """The module's tensors that the file does not have; they keep their values."""
    unexpected: tuple[str, ...] = ()
    """The file's tensors that match no tensor of the module, by the file's names."""
    skipped: tuple[str, ...] = ()
    """The file's tensors of parts that the module deliberately lacks: a classification head, a
    decoder beside an encoder; by the file's names."""
    fresh: tuple[str, ...] = ()
    """The module's tensors that keep their values whatever the file holds: a new head."""
    reshaped: Mapping[str, str] = field(default_factory=dict)
    """The module's tensor -> how the file's was resampled to fit; they are also in `matched`."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """The module's tensor -> why the file's does not fit; they keep their values."""
    detail: str = ""
    """Additional information on the source: a checkpoint's step, a digest."""
    taken: str = ""
    """What stood before all matched names in the file, such as ``teacher.backbone.``."""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, nothing is unexpected and all shapes fit."""
        return not self.missing and not self.unexpected and not self.kept

    def __str__(self) -> str:
        """Return the report as a few lines of text."""
        detail = f" under {self.taken.removesuffix('.')}" if self.taken else ""
        detail += f"; {self.detail}" if self.detail else ""
        first = f"{self.path} ({self.layout} names{detail}): {len(self.matched)} tensors matched"
        lines = [first]
        for label, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("left out", self.skipped),
            ("begin anew", self.fresh),
            ("reshaped", [f"{name} {how}" for name, how in self.reshaped.items()]),
            ("kept as they were", [f"{name} {why}" for name, why in self.kept.items()]),
        ):
            if names:
                lines.append(f"  {len(names)} {label}: {listed(names)}")
        return "\n".join(lines)


def listed(names: Sequence[str]) -> str:
    """Return names joined by commas: the first `SHOWN`, and the number of the others."""
    rest = len(names) - SHOWN
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {rest} more" if rest > 0 else shown
