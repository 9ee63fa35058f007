"""The command line that trains a plan."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from quadriga.cli.arguments import read_overrides
from quadriga.cli.resolve import resolve
from quadriga.pipeline.planner.search import Plan

CUT = {"schedule": "none", "stages": 1, "depths": None, "stages_per_rank": 1, "conf": None}
"""What of ``pipeline`` a plan decides, and its values for a model in one piece."""
DECIDED = (*(f"pipeline.{n}" for n in CUT), "train.accumulate", "train.recompute", "train.ranks")
"""Overrides that the plan replaces."""


def command(
    recipe: str,
    overrides: Sequence[str],
    ranks: int,
    best: Plan,
    conf: Path,
    per_node: int,
) -> str:
    """Return the command line that trains a plan: torchrun's where it takes several hosts.

    Args:
        recipe: What is trained.
        overrides: The user's words.
        ranks: Processes in all.
        best: The plan.
        conf: Where its ``conf.json`` is.
        per_node: Ranks of one host.
    """
    candidate = best.candidate
    kept = [
        f"{key}={value}" for key, value in read_overrides(overrides).items() if key not in DECIDED
    ]
    train = ["train", recipe, *kept]
    if ranks > per_node:
        hosts = str(-(-ranks // per_node))
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:29500"]
        start = ["torchrun", "--nnodes", hosts, "--nproc-per-node", str(per_node), *meet]
        words = [*start, "-m", "quadriga", *train]
    else:
        words = ["quadriga", *train, "--ranks", str(ranks)]
    own = resolve(recipe, None, kept).config.pipeline
    reset = list(CUT) if candidate.schedule == "none" else ["depths", "stages_per_rank"]
    if candidate.schedule != "none":
        words += [f"pipeline.conf={conf}", f"pipeline.schedule={candidate.schedule}"]
    # What the recipe itself says of it must not come between.
    words += [
        f"pipeline.{name}={'none' if CUT[name] is None else CUT[name]}"
        for name in reset
        if getattr(own, name) != CUT[name]
    ]
    words += [f"train.accumulate={candidate.micro_batches}"]
    words += [f"train.recompute={candidate.recompute}"]
    return shlex.join(words)
