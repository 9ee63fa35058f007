"""The board: makes the runs of `board_cifar10` that no kept row has, keeps their rows, prints them.

    python tools/board.py run root=CIFAR10_FOLDER [--only NODE] [--slots 2] [KEY=VALUE ...]
    python tools/board.py keep
    python tools/board.py table

``run`` is `quadriga run board_cifar10` without the nodes whose row is in docs/board_cifar10.jsonl
with the hash of their config as it is now; it can be stopped and started again, and keeps the rows
of what is finished when it ends. ``keep`` does that at any time, also while it runs.

A row's hash covers what determines a run's result and its evaluation, and not where the data are.
Core-minutes are the CPU time of steps, checkpoints and the loading of data, without start-up and
evaluation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quadriga.cli.workflow.command import RunRequest, run_workflow
from quadriga.cli.workflow.resolve import resolve_workflow
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.results import metrics_at
from quadriga.engine.logs.times import Event, read_times
from quadriga.engine.run_config import RunConfig, identity
from quadriga.files import parse_json, write_text
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig
from quadriga.workflow.directory import WorkflowDirectory
from quadriga.workflow.graph import matching

BOARD = "board_cifar10"
ROWS = Path(__file__).resolve().parent.parent / "docs" / f"{BOARD}.jsonl"
COLUMNS = (
    "method", "encoder", "epochs", "core-minutes",
    "kNN", "kNN random", "gain", "linear", "linear random", "gain",
)  # fmt: skip

KeptRow = dict[str, Any]


def row_hash(config: RunConfig) -> str:
    """Return a hash of what determines a run's row."""
    evaluation = {
        f"evaluation.{name}": value
        for name, value in config.evaluation.leaves()
        if name != "workers"
    }
    text = json.dumps(identity(config) | evaluation, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_rows(path: Path) -> dict[str, KeptRow]:
    """Return the kept rows by node."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row["node"]: row for row in map(parse_json, lines)}


def missing(configs: Mapping[str, RunConfig], rows: Mapping[str, KeptRow]) -> list[str]:
    """Return the nodes of which no row is kept with their config's hash."""
    return [
        name
        for name, config in configs.items()
        if name not in rows or rows[name]["hash"] != row_hash(config)
    ]


def cpu_seconds(events: Sequence[Event]) -> float:
    """Return the CPU time of all attempts at a run, without start-up and evaluations."""
    total = began = last = 0.0
    for event in events:
        spent = float(event.get("cpu_seconds", 0.0))
        if event["event"] == "begin":
            total, began, last = total + last - began, spent, spent
        elif event["event"] == "steps":
            last = max(last, spent)
        elif event["event"] == "evaluated":
            total -= spent
    return total + last - began


def row_of(node: str, folder: Path, config: RunConfig, step: int) -> KeptRow:
    """Return the row of a finished run of `step` steps."""
    found = metrics_at(RunDirectory(folder).report, step)
    events = read_times(folder)
    each = [e["flops_per_sample"] for e in events if e["event"] == "work"][-1]
    samples = step * config.train.batch_size
    return {
        "node": node,
        "hash": row_hash(config),
        "method": config.objective.kind(),
        "encoder": encoder_of(config),
        "seed": config.seed,
        "steps": step,
        "epochs": round(samples / (config.train.dataset_size or samples), 2),
        "teraflop": round(each * samples / 1e12, 3),
        "core_minutes": round(cpu_seconds(events) / 60, 2),
        "knn": found["knn.top1"],
        "knn_random": found["knn.top1_random"],
        "linear": found["linear_probe.top1"],
        "linear_random": found["linear_probe.top1_random"],
    }


def encoder_of(config: RunConfig) -> str:
    """Return the encoder in a few words."""
    model = config.model
    if isinstance(model, ResNetConfig):
        return f"ResNet-{model.depth}, stem {model.stem_width}"
    assert isinstance(model, ViTConfig)
    return f"ViT/{model.patch_px}, {model.depth} x {model.width}"


def keep(work_dir: Path, path: Path) -> dict[str, KeptRow]:
    """Add the rows of a work directory's finished runs to those that are kept; return them all."""
    directory, rows = WorkflowDirectory(work_dir), read_rows(path)
    graph = directory.read_graph()
    for node, state in directory.states(graph).items():
        config = directory.read_config(node)
        if state.state == "finished" and config is not None:
            rows[node] = row_of(node, directory.run_of(node), config, state.step)
    order = {node: place for place, node in enumerate(graph.nodes)}
    kept = sorted(rows.values(), key=lambda row: order.get(row["node"], len(order)))
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in kept))
    return rows


def table(rows: Sequence[KeptRow]) -> str:
    """Return the rows as a table in Markdown, in percent and points."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    for row in rows:
        numbers = [row["epochs"], row["core_minutes"]]
        for name in ("knn", "linear"):
            found, random = row[name], row[f"{name}_random"]
            numbers += [found, random, found - random]
        words = [row["node"], row["encoder"], *(f"{number:.1f}" for number in numbers)]
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def run(given: argparse.Namespace) -> int:
    """Make the missing runs, and keep the rows of what is finished; return the exit code."""
    nodes = resolve_workflow(BOARD, given.words).nodes
    configs = {name: resolved.config for name, resolved in nodes.items()}
    wanted = {n for pattern in given.only or ["*"] for n in matching(pattern, configs, "--only")}
    left = [name for name in missing(configs, read_rows(given.rows)) if name in wanted]
    if not left:
        print("every row is kept")
        return 0
    request = RunRequest(
        BOARD, tuple(given.words), given.work_dir, slots=given.slots, only=tuple(left)
    )
    try:
        return run_workflow(request)
    finally:
        keep(given.work_dir, given.rows)


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=("run", "keep", "table"))
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--work-dir", type=Path, default=Path("runs") / BOARD)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--only", action="append", metavar="NODE")
    parser.add_argument("--slots", type=int, default=1)
    given = parser.parse_intermixed_args(words)
    if given.command == "run":
        return run(given)
    rows = keep(given.work_dir, given.rows) if given.command == "keep" else read_rows(given.rows)
    print(table(list(rows.values())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
