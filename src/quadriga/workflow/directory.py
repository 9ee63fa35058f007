"""The work directory of a workflow.

WORK_DIR/
    workflow/workflow.json    the graph: nodes, edges, steps, operations, the reference
    workflow/NODE.json        the config with which a node's run starts
    NODE/                     the work directory of a node's run, and its console.txt
    ledger.json               the costs of all runs
    report/index.html         the report

All state is in the nodes' own directories, so no other file here can be out of date.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, final

from quadriga.config.own_code import MissingCode
from quadriga.config.provenance import Resolved
from quadriga.engine.checkpoint.store import list_checkpoints
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.run_config import RunConfig, first_difference, identity
from quadriga.engine.status import RunState, is_finished, state_of
from quadriga.errors import UserError
from quadriga.files import LOCK, parse_json, take_lock, write_text
from quadriga.workflow.graph import Needs, references
from quadriga.workflow.ledger import as_json


@final
@dataclass(frozen=True, kw_only=True)
class Planned:
    """The size and the predicted cost of a run that has not started."""

    total_steps: int
    batch_size: int
    ranks: int
    parameters: int
    trainable_parameters: int
    flops_per_sample: float | None
    """Model FLOPs of a sample's forward and backward pass; None if they cannot be counted."""
    memory_gib: float | None
    """Estimated GiB per rank of weights, gradients, moments and activations; None if unknown."""

    @property
    def flops(self) -> float | None:
        """Model FLOPs of the whole run; None if they cannot be counted."""
        each = self.flops_per_sample
        return None if each is None else each * self.batch_size * self.total_steps

    def as_json(self) -> dict[str, Any]:
        """Return all fields and `flops` as plain values."""
        return {**asdict(self), "flops": self.flops}


@final
@dataclass(frozen=True)
class Graph:
    """The content of workflow.json."""

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
        """Return the config file with which a node's run starts."""
        return self.path / "workflow" / f"{node}.json"

    def run_of(self, node: str) -> Path:
        """Return the work directory of a node's run."""
        return self.path / node

    def lock(self) -> IO[str]:
        """Lock the directory against other `quadriga run` processes until the file is closed.

        Raises:
            UserError: Another process holds the lock, or the directory cannot be written.
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
        """Check that the directory is empty or holds this workflow, without changing it.

        Raises:
            UserError: The directory holds something else.
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
            UserError: The file is missing, unreadable or damaged.
        """
        try:
            content = parse_json(self.graph.read_text(encoding="utf-8"))
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
            OSError: The file cannot be written.
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
        """Return the config with which a node was last started; None if it never was.

        Raises:
            UserError: The file is unreadable or damaged.
        """
        try:
            text = self.config_of(node).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise UserError(f"{self.config_of(node)} cannot be read: {reason}") from error
        try:
            return Resolved.from_json(RunConfig, text).config
        except MissingCode:
            raise
        except UserError as error:
            raise UserError(f"{self.config_of(node)} is damaged: {error}") from error

    def has_begun(self, node: str) -> bool:
        """Return whether a node has a checkpoint; its config may change until then."""
        return bool(list_checkpoints(RunDirectory(self.run_of(node)).checkpoints))

    def difference(self, node: str, config: RunConfig) -> str | None:
        """Return how a begun node's config differs from `config`; None if it does not.

        Args:
            node: The node's name.
            config: The node, with its references to other nodes.
        """
        before = self.read_config(node) if self.has_begun(node) else None
        if before is None:
            return None
        there, here = identity(before), identity(config)
        edges = references(config)

        def is_same(path: str) -> bool:
            if path == "train.precision" and here[path] == "auto":
                return True  # the run keeps that with which it began
            return path in edges and _ends_in(there.get(path), edges[path])

        return first_difference(there, here, is_same)

    def set_aside_if_void(self, node: str, config: RunConfig) -> None:
        """Move the directory of a node without checkpoints away if it has another config.

        Args:
            node: The node's name.
            config: The config with which the node will start, without references.
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
        """Return whether a node's run is complete; see `engine.status.is_finished`."""
        return is_finished(self.run_of(node), config, total_steps)

    def ledger(self, graph: Graph, states: Mapping[str, RunState]) -> dict[str, Any]:
        """Return the ledger of the costs so far; `states` comes from `self.states`."""
        return as_json(
            graph.name,
            graph.result,
            graph.needs,
            {node: states[node].cost for node in graph.nodes},
            {node: planned.flops for node, planned in graph.planned.items()},
            None if graph.reference is None else graph.reference.as_json(),
        )

    def write_ledger(self, graph: Graph, states: Mapping[str, RunState]) -> dict[str, Any]:
        """Write ledger.json and return its content.

        Raises:
            UserError: The file cannot be written.
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
    """Return whether a stored value holds the folders of these nodes, in any parent folder."""
    paths = value if isinstance(value, list) else [value]
    return [Path(str(path)).name for path in paths] == list(names)
