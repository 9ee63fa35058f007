"""A plan as the ``conf.json`` that training takes (`pipeline.conf`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quadriga.errors import UserError
from quadriga.files import write_text


def make_conf(depths: Sequence[int], width: int) -> dict[str, Any]:
    """Return the maps of a placement: a module is a block, and the loss is one more.

    Args:
        depths: Blocks of each stage; the loss lies on the last one.
        width: Copies of the model. The ranks of a stage are neighbours.

    Raises:
        ValueError: A stage but the last has no block: the maps cannot say that.
    """
    if not depths or min(depths[:-1], default=1) < 1:
        raise ValueError(f"each stage but the last must have a block, but they are {depths}")
    stage_of = [stage for stage, blocks in enumerate(depths) for _ in range(blocks)]
    return {
        "module_to_stage_map": [*stage_of, len(depths) - 1],
        "stage_to_rank_map": {
            str(stage): list(range(stage * width, (stage + 1) * width))
            for stage in range(len(depths))
        },
    }


def write_conf(path: Path, depths: Sequence[int], width: int) -> None:
    """Write a ``conf.json`` beside its place and rename it.

    Raises:
        UserError: The file cannot be written.
    """
    lines = [f'  "{key}": {json.dumps(value)}' for key, value in make_conf(depths, width).items()]
    try:
        write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
