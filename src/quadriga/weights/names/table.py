"""Two-way translation between this project's names of a model's tensors and foreign names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Tensors = dict[str, Tensor]

LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""Names of a module's own tensors, the same on both sides."""


@dataclass(frozen=True, kw_only=True)
class NameTable:
    """The names of one foreign layout.

    Names on this project's side are those of an encoder and its decoder: ``encoder.norm.weight``,
    ``decoder.blocks.0.mlp.hidden.bias``. Where several foreign names map to one of this project's,
    all are read and the first is written.
    """

    stems: Sequence[tuple[str, str]]
    """(foreign, ours) of single tensors and of modules with the tensors of `LEAVES`."""
    blocks: Sequence[tuple[str, str]]
    """(foreign, ours) prefixes before a block's number, both ending in a dot."""
    parts: Sequence[tuple[str, str]]
    """(foreign, ours) of the names after a block's number, as for `stems`."""
    skipped: Sequence[str]
    """Prefixes of foreign names that are never loaded."""

    def ours(self, name: str) -> str | None:
        """Return this project's name for a foreign one; None where there is none."""
        return _translate(name, self.stems, self.blocks, self.parts)

    def foreign(self, name: str) -> str | None:
        """Return the foreign name for one of this project's; None where there is none."""
        return _translate(name, _swapped(self.stems), _swapped(self.blocks), _swapped(self.parts))


@dataclass(frozen=True, kw_only=True)
class ForeignLayout:
    """One foreign layout: the names and shapes of its tensors."""

    table: NameTable
    marker: str
    """The name of a tensor that every file in this layout has, and no other file."""
    prefix: str
    """Prefix of the encoder's names in a larger model."""
    fuse: Callable[[Tensors], Tensors]
    """Converts the file's tensors, already under this project's names, to its tensors."""
    split: Callable[[Tensors], Tensors]
    """The inverse of `fuse`."""
    prefixed: tuple[str, ...] = ("encoder.",)
    """Prefixes of this project's names whose foreign names get `prefix` in a larger model."""
    spelling: Callable[[str], str] = str
    """Converts a name in a file to its spelling in `table`."""

    def written(self, name: str) -> str | None:
        """Return the name in a file of a whole model for one of this project's; None without."""
        target = self.table.foreign(name)
        before = self.prefix if name.startswith(self.prefixed) else ""
        return None if target is None else before + target

    def plain(self, name: str) -> str:
        """Return the name in `table` for a name in a file."""
        return self.spelling(name).removeprefix(self.prefix)


def _swapped(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(ours, foreign) for foreign, ours in pairs]


def _translate(
    name: str,
    stems: Sequence[tuple[str, str]],
    blocks: Sequence[tuple[str, str]],
    parts: Sequence[tuple[str, str]],
) -> str | None:
    for before, after in blocks:
        number, _, rest = name.removeprefix(before).partition(".")
        if name.startswith(before) and number.isdigit():
            part = _look_up(rest, _first_wins(parts))
            return None if part is None else f"{after}{number}.{part}"
    return _look_up(name, _first_wins(stems))


def _first_wins(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    return dict(reversed(pairs))


def _look_up(name: str, table: Mapping[str, str]) -> str | None:
    """Look up a tensor by its whole name, else by its module's name."""
    if name in table:
        return table[name]
    module, _, leaf = name.rpartition(".")
    return f"{table[module]}.{leaf}" if module in table and leaf in LEAVES else None
