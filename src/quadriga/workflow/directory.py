"""The work directory of a workflow.

WORK_DIR/
    workflow/workflow.json    the graph: nodes, edges, steps, operations, the reference
    workflow/NODE.json        the config that a node's run is started with
    NODE/                     the run of a node, a work directory as any other; and console.txt
    ledger.json               what everything has cost
    report/index.html         the report

Whatever state there is, is in the nodes' own directories: nothing here goes out of date.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, final

from quadriga.config.provenance import Resolved
from quadriga.engine.checkpoint.store import list_checkpoints
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.run_config import RunConfig, identity
from quadriga.engine.status import RunState, is_finished, state_of
from quadriga.errors import UserError
from quadriga.files import LOCK, take_lock, write_text
from quadriga.workflow.graph import Needs, references
from quadriga.workflow.ledger import as_json


@final
@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is known of a run before it starts."""

    total_steps: int
    batch_size: int
    ranks: int
    parameters: int
    trainable_parameters: int
    flops_per_sample: float | None
    """Model FLOPs of a sample's forward and backward pass; None where they cannot be counted."""
    memory_gib: float | None
    """Estimate of what a rank holds: weights, gradients, moments and activations."""

    @property
    def flops(self) -> float | None:
        """Model FLOPs of the whole run."""
        each = self.flops_per_sample
        return None if each is None else each * self.batch_size * self.total_steps

    def as_json(self) -> dict[str, Any]:
        """Return it with its FLOPs."""
        return {**asdict(self), "flops": self.flops}


@final
@dataclass(frozen=True)
class Graph:
    """What workflow.json says."""

    name: str
    result: str
    needs: Needs
    planned: Mapping[str, Planned]
    reference: Planned | None

    @property
    def nodes(self) -> list[str]:
        """The nodes in the order of the recipe."""
        return list(self.needs)


@final
@dataclass(frozen=True)
class WorkflowDirectory:
    """Paths and files of one workflow."""

    path: Path

    @property
    def graph(self) -> Path:
        """workflow.json."""
        return self.path / "workflow" / "workflow.json"

    def config_of(self, node: str) -> Path:
        """Return the file that a node's run is started with."""
        return self.path / "workflow" / f"{node}.json"

    def run_of(self, node: str) -> Path:
        """Return the work directory of a node's run."""
        return self.path / node

    def lock(self) -> IO[str]:
        """Keep every other `quadriga run` out until the file is closed.

        Raises:
            UserError: Another one works here, or the directory cannot be written.
        """
        try:
            self.graph.parent.mkdir(parents=True, exist_ok=True)
            stream = take_lock(self.graph.parent / LOCK)
        except OSError as error:
            raise UserError(
                f"work dir {self.path} cannot be written: {error.strerror}; make room or choose "
                "another --work-dir"
            ) from error
        if stream is None:
            raise UserError(
                f"work dir {self.path} is in use: another `quadriga run` works there; wait for it "
                "or choose another --work-dir"
            )
        return stream

    def check_owner(self, name: str) -> None:
        """Check that the directory is free or holds this workflow; change nothing.

        Raises:
            UserError: It holds something else.
        """
        if self.graph.is_file():
            there = self.read_graph().name
            if there != name:
                raise UserError(
                    f"work dir {self.path} belongs to another workflow: {there}; choose another "
                    "--work-dir"
                )
        elif self.path.is_dir() and any(p.name != "workflow" for p in self.path.iterdir()):
            raise UserError(
                f"work dir {self.path} is not empty and holds no workflow; choose another "
                "--work-dir"
            )

    def read_graph(self) -> Graph:
        """Read workflow.json.

        Raises:
            UserError: There is none, or it is damaged.
        """
        try:
            content = json.loads(self.graph.read_text(encoding="utf-8"))
            nodes = content["nodes"]
            return Graph(
                name=content["name"],
                result=content["result"],
                needs={node: tuple(known["needs"]) for node, known in nodes.items()},
                planned={node: _planned(known["planned"]) for node, known in nodes.items()},
                reference=_planned(content["reference"]) if content["reference"] else None,
            )
        except FileNotFoundError as error:
            raise UserError(f"{self.path} holds no workflow: there is no {self.graph}") from error
        except OSError as error:
            raise UserError(f"{self.graph} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.graph} is damaged ({error!r}); remove it, the same `quadriga run` writes "
                "it anew"
            ) from error

    def write_graph(self, graph: Graph) -> None:
        """Write workflow.json.

        Raises:
            OSError: It cannot be written.
        """
        content = {
            "name": graph.name,
            "result": graph.result,
            "nodes": {
                node: {"needs": list(needs), "planned": graph.planned[node].as_json()}
                for node, needs in graph.needs.items()
            },
            "reference": None if graph.reference is None else graph.reference.as_json(),
        }
        write_text(self.graph, json.dumps(content, indent=2) + "\n")

    def read_config(self, node: str) -> RunConfig | None:
        """Return the config that a node was last started with; None when it never was."""
        try:
            text = self.config_of(node).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{self.config_of(node)} cannot be read: {error.strerror}") from error
        try:
            return Resolved.from_json(RunConfig, text).config
        except UserError as error:
            raise UserError(f"{self.config_of(node)} is damaged: {error}") from error

    def has_begun(self, node: str) -> bool:
        """Return whether a node has a checkpoint: only then its config is bound."""
        return bool(list_checkpoints(RunDirectory(self.run_of(node)).checkpoints))

    def difference(self, node: str, config: RunConfig) -> str | None:
        """Return what a node that has begun computes otherwise than `config` asks for, if anything.

        Args:
            node: Its name.
            config: The node, with its references to other nodes.
        """
        before = self.read_config(node) if self.has_begun(node) else None
        if before is None:
            return None
        there, here = identity(before), identity(config)
        edges = references(config)
        different = [
            path
            for path in sorted(there.keys() | here.keys())
            if there.get(path) != here.get(path)
            and not (path in edges and _ends_in(there.get(path), edges[path]))
        ]
        if not different:
            return None
        path, more = different[0], len(different) - 1
        tail = f" (and {more} more differences)" if more else ""
        return f"{path} is {there.get(path)!r} there and {here.get(path)!r} here{tail}"

    def set_aside_if_void(self, node: str, config: RunConfig) -> None:
        """Move away what a process has left that made no checkpoint, for another config than this.

        Args:
            node: Its name.
            config: The node as it is to be started, without references.
        """
        folder = self.run_of(node)
        if not (folder / "config.json").is_file():
            return
        before = self.read_config(node)
        if before is not None and identity(before) == identity(config):
            return
        aside = self.graph.parent / "superseded"
        aside.mkdir(exist_ok=True)
        number = sum(1 for path in aside.iterdir() if path.name.startswith(f"{node}."))
        os.rename(folder, aside / f"{node}.{number}")

    def states(self, graph: Graph) -> dict[str, RunState]:
        """Return the state of every node's run, from its directory alone."""
        return {
            node: state_of(
                self.run_of(node), self.read_config(node), graph.planned[node].total_steps
            )
            for node in graph.nodes
        }

    def is_finished(self, node: str, config: RunConfig, total_steps: int) -> bool:
        """Return whether nothing of a node is left to do."""
        return is_finished(self.run_of(node), config, total_steps)

    def ledger(self, graph: Graph, states: Mapping[str, RunState]) -> dict[str, Any]:
        """Return what everything has cost so far; `states` are those of `self.states`."""
        return as_json(
            graph.name,
            graph.result,
            graph.needs,
            {node: states[node].cost for node in graph.nodes},
            {node: planned.flops for node, planned in graph.planned.items()},
            None if graph.reference is None else graph.reference.as_json(),
        )

    def write_ledger(self, graph: Graph, states: Mapping[str, RunState]) -> dict[str, Any]:
        """Write ledger.json and return what it holds.

        Raises:
            UserError: It cannot be written.
        """
        ledger = self.ledger(graph, states)
        path = self.path / "ledger.json"
        try:
            write_text(path, json.dumps(ledger, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}; make room") from error
        return ledger


def _planned(content: Mapping[str, Any]) -> Planned:
    return Planned(**{name: value for name, value in content.items() if name != "flops"})


def _ends_in(value: Any, names: Sequence[str]) -> bool:
    """Return whether a stored value is the folders of these nodes, wherever they were."""
    paths = value if isinstance(value, list) else [value]
    return [Path(str(path)).name for path in paths] == list(names)
