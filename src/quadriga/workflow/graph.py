"""Several runs with "starts from the checkpoint of" edges, as values."""

from __future__ import annotations

from dataclasses import dataclass

from quadriga.engine.run_config import RunConfig

REFERENCE = "@"
"""A text value of a node's config that begins so names another node: it stands for the work
directory of that node's run. The edges of the graph are these, and nothing else."""


@dataclass(frozen=True)
class Node:
    """One run of a workflow."""

    name: str
    """Also the folder of its run below the workflow's."""
    config: RunConfig
    """The run; ``warm_start.path``, ``modular.meta`` or ``modular.modules`` may be ``@node``."""


@dataclass(frozen=True)
class Workflow:
    """A graph of runs. A recipe that returns one is run by ``quadriga run``."""

    name: str
    """Name of the recipe; also the default work directory, ``runs/NAME``."""
    nodes: tuple[Node, ...]
    """In any order; no node may wait for itself."""
    result: str
    """The node whose model is what the workflow is for."""
    reference: RunConfig | None = None
    """What would have been trained without the workflow: its cost is counted, and set beside the
    workflow's, but it is not run."""
