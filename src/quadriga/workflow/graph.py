"""The graph of a workflow: runs, and edges to the runs from whose checkpoints they start."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from quadriga.config.base import leaves_of
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError, did_you_mean

REFERENCE = "@"
"""Prefix of a string in a node's config that names another node, and stands for the work directory
of that node's run. These references are the edges of the graph; there are no others."""


@dataclass(frozen=True)
class Node:
    """One run of a workflow."""

    name: str
    """Name of the node, and of its run's folder in the workflow's directory."""
    config: RunConfig
    """The run; ``warm_start.path``, ``modular.meta`` or ``modular.modules`` may be ``@node``."""


@dataclass(frozen=True)
class Workflow:
    """A graph of runs. ``quadriga run`` runs a recipe that returns one."""

    name: str
    """Name of the recipe; also the default work directory, ``runs/NAME``."""
    nodes: tuple[Node, ...]
    """Nodes in any order, without cycles."""
    result: str
    """The node whose model is the result of the workflow."""
    reference: RunConfig | None = None
    """The run that the workflow replaces. It is not run; its cost is counted for comparison."""


RESERVED = ("workflow", "report", "reference", "logs")
"""Names that no node may have: names of other folders, and of the reference."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Needs = Mapping[str, Sequence[str]]
"""Node -> the nodes that it starts from."""


def references(config: RunConfig) -> dict[str, list[str]]:
    """Return the config's references to other nodes: dotted path -> names of nodes."""
    found = {}
    for path, value in leaves_of(config.as_dict(), ""):
        names = [text[len(REFERENCE) :] for text in _texts(value) if text.startswith(REFERENCE)]
        if names:
            found[path] = names
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def needs_of(workflow: Workflow) -> dict[str, tuple[str, ...]]:
    """Return the nodes that each node starts from, each once, in the order of the workflow."""
    names = [node.name for node in workflow.nodes]
    edges = {}
    for node in workflow.nodes:
        used = {name for named in references(node.config).values() for name in named}
        edges[node.name] = tuple(name for name in names if name in used)
    return edges


def bind(config: RunConfig, place: Callable[[str], str]) -> RunConfig:
    """Return the config with each reference replaced by ``place(node)``."""

    def bound(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: bound(item) for key, item in value.items()}
        if isinstance(value, list):
            return [bound(item) for item in value]
        if isinstance(value, str) and value.startswith(REFERENCE):
            return place(value[len(REFERENCE) :])
        return value

    return RunConfig.from_dict(bound(config.as_dict()))


def check_graph(workflow: Workflow) -> None:
    """Check names and edges.

    Raises:
        UserError: A name is invalid or duplicate, a reference names no node, or the graph has a
            cycle.
    """
    names = [node.name for node in workflow.nodes]
    for name in names:
        if not _NAME.fullmatch(name) or name in RESERVED:
            raise UserError(
                f"workflow {workflow.name}: a node's name must be letters, digits, _, - and ., "
                f"and none of {', '.join(RESERVED)}, but is {name!r}"
            )
        if names.count(name) > 1:
            raise UserError(f"workflow {workflow.name} has two nodes called {name}; rename one")
    if workflow.result not in names:
        raise UserError(
            f"workflow {workflow.name}: result must name a node, but is {workflow.result!r}"
            f"{did_you_mean(workflow.result, names)}"
        )
    for node in workflow.nodes:
        for path, used in references(node.config).items():
            for name in used:
                if name not in names:
                    raise UserError(
                        f"{node.name}: {path} must name a node of the workflow, but is "
                        f"{REFERENCE}{name}{did_you_mean(name, names)}"
                    )
    if workflow.reference is not None and (found := references(workflow.reference)):
        raise UserError(
            f"workflow {workflow.name}: the reference is not run and may name no node, but "
            f"{next(iter(found))} does"
        )
    order_of(needs_of(workflow))


def order_of(needs: Needs) -> list[str]:
    """Return the nodes in topological order; otherwise the given order is kept.

    Raises:
        UserError: The graph has a cycle.
    """
    order: list[str] = []
    left = list(needs)
    while left:
        ready = next((name for name in left if all(n in order for n in needs[name])), None)
        if ready is None:
            circle = _circle(left, needs)
            raise UserError(
                f"nodes must not wait for themselves, but {' needs '.join(circle)}; "
                "remove one of these references"
            )
        left.remove(ready)
        order.append(ready)
    return order


def _circle(left: Sequence[str], needs: Needs) -> list[str]:
    """Return a cycle among nodes each of which needs another of them; first and last are equal."""
    path = [left[0]]
    while True:
        following = next(name for name in needs[path[-1]] if name in left)
        if following in path:
            return [*path[path.index(following) :], following]
        path.append(following)


def with_all_needed(needs: Needs, name: str) -> set[str]:
    """Return a node and all nodes that it needs, directly or indirectly."""
    found, left = {name}, [name]
    while left:
        more = [other for other in needs[left.pop()] if other not in found]
        found.update(more)
        left += more
    return found


def levels_of(needs: Needs) -> dict[str, int]:
    """Return each node's level: the length of the longest chain of nodes that it needs."""
    levels: dict[str, int] = {}
    for name in order_of(needs):
        levels[name] = max((levels[other] + 1 for other in needs[name]), default=0)
    return levels


def matching(pattern: str, names: Iterable[str], what: str) -> list[str]:
    """Return the names that a name or a glob such as ``module_*`` matches.

    Raises:
        UserError: No name matches; `what` describes the pattern's origin in the message.
    """
    known = list(names)
    found = [name for name in known if fnmatchcase(name, pattern)]
    if not found:
        raise UserError(
            f"{what} must name a node of the workflow, but {pattern} matches none"
            f"{did_you_mean(pattern, known)}"
        )
    return found
