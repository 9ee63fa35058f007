"""Running the arms of modular_arms.py, and what came out: a table and a picture."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modular_arms import ZERO, Arm, Arms
from modular_picture import Row, draw
from quadriga.cli.workflow.command import RunRequest, make
from quadriga.cli.workflow.resolve import as_it_is
from quadriga.engine.logs.results import read_records
from quadriga.errors import EXIT_USER_ERROR, UserError
from quadriga.formatting import duration, flops
from quadriga.workflow.directory import Graph, WorkflowDirectory
from quadriga.workflow.graph import Workflow
from quadriga.workflow.ledger import longest_path

METRIC = "held_out.accuracy"
Make = Callable[[int, Sequence[float]], Arms]
"""Returns the arms of a seed, given the learning rates that the end-to-end arm tries."""


@dataclass(frozen=True)
class Result:
    """What an arm of one seed came to."""

    accuracy: float
    """Per cent of the test set."""
    before: float | None
    """The same of the assembled model, before it was fine-tuned."""
    flops: float
    path_flops: float
    """FLOPs of the longest chain of runs, with a device for each that could have one."""
    seconds: float
    """Of all runs that the arm needs, summed."""
    path_seconds: float
    memory_gib: float
    """The most that one of its runs was planned to hold: weights, gradients, moments,
    activations."""
    module_gib: float | None
    """The most that one of its modules' runs was planned to hold."""
    resident_gib: float
    """The most that one of its processes has held, the interpreter and its libraries included."""


def arguments(doc: str, work_dir: str) -> argparse.ArgumentParser:
    """Return the parser of the options that all comparisons have."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-dir", type=Path, default=Path(work_dir))
    parser.add_argument("--slots", type=int, default=2, help="runs at a time")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--picture", type=Path, help="a PNG file of accuracy against cost")
    parser.add_argument(
        "--only", action="append", default=[], help="runs to make now, such as s0_zero or 's0_fp*'"
    )
    parser.add_argument("--goal", action="store_true", help="further arms; see modular_goal.py")
    parser.add_argument("--table", action="store_true", help="run nothing, show what is there")
    return parser


def compare(name: str, arms_of: Make, rates: Sequence[float], given: argparse.Namespace) -> None:
    """Make what is missing, then print the table; the first seed chooses the learning rate.

    Args:
        name: The comparison.
        arms_of: Its arms.
        rates: Learning rates that the first seed tries.
        given: The options of `arguments`.
    """
    found: dict[str, list[Result]] = {}
    chosen = list(rates)
    for seed in range(given.seeds):
        arms = arms_of(seed, chosen)
        folder = given.work_dir / f"seed{seed}"
        if not given.table:
            workflow = Workflow(f"{name}_seed{seed}", tuple(arms.nodes), arms.arms[0].result)
            request = RunRequest(name, work_dir=folder, slots=given.slots, only=tuple(given.only))
            try:
                code = make(as_it_is(workflow), request)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                raise SystemExit(EXIT_USER_ERROR) from None
            if code != 0:
                raise SystemExit(f"{name}: seed {seed} is not finished; the same command goes on")
        results = results_of(WorkflowDirectory(folder), arms.arms)
        if len(chosen) > 1:
            tried = {
                rate: results[f"end to end, lr {rate:g}"]
                for rate in chosen
                if f"end to end, lr {rate:g}" in results
            }
            if tried:
                chosen = [max(tried, key=lambda rate: tried[rate].accuracy)]
        for arm, result in results.items():
            found.setdefault(arm, []).append(result)
        if given.only:
            break
    show(found)
    if given.picture is not None and found:
        draw(_rows(found), given.picture)


def results_of(directory: WorkflowDirectory, arms: Sequence[Arm]) -> dict[str, Result]:
    """Return the results of the arms that are finished."""
    if not directory.graph.exists():
        return {}
    graph = directory.read_graph()
    states = directory.states(graph)
    done = {name for name, state in states.items() if state.state == "finished"}
    return {arm.name: _result(directory, graph, arm) for arm in arms if done.issuperset(arm.nodes)}


def _result(directory: WorkflowDirectory, graph: Graph, arm: Arm) -> Result:
    states = directory.states(graph)
    records = [r for r in read_records(directory.run_of(arm.result) / "report") if r.own]
    planned = {name: graph.planned[name] for name in arm.nodes}
    work = {name: plan.flops or 0.0 for name, plan in planned.items()}
    times = {name: states[name].cost.seconds for name in arm.nodes}
    needs = {name: tuple(n for n in graph.needs[name] if n in planned) for name in planned}
    memory = {name: plan.memory_gib or 0.0 for name, plan in planned.items()}
    modules = [gib for name, gib in memory.items() if "module_" in name]
    return Result(
        accuracy=100 * records[-1].named_metrics[METRIC],
        before=100 * records[0].named_metrics[METRIC] if records[0].step == 0 else None,
        flops=sum(work.values()),
        path_flops=_longest(needs, work, arm.result),
        seconds=sum(times.values()),
        path_seconds=_longest(needs, times, arm.result),
        memory_gib=max(memory.values()),
        module_gib=max(modules, default=None),
        resident_gib=max(states[name].cost.memory_gib or 0.0 for name in arm.nodes),
    )


def _longest(needs: Mapping[str, Sequence[str]], weights: Mapping[str, float], end: str) -> float:
    return longest_path(needs, weights, end)[1]


def show(found: Mapping[str, Sequence[Result]]) -> None:
    """Print one row per arm; ratios are to end-to-end training with branches at zero."""
    if not found:
        print("no arm is finished yet")
        return
    base = found.get(ZERO, next(iter(found.values())))[0]
    columns = (
        "arm",
        "seeds",
        "accuracy",
        "assembled",
        "FLOPs",
        "x",
        "path x",
        "time",
        "path",
        "memory x",
        "module x",
        "RSS GiB",
    )
    rows = [columns]
    for name, results in sorted(found.items(), key=lambda item: -_mean(item[1])):
        first = results[0]
        spread = statistics.stdev(r.accuracy for r in results) if len(results) > 1 else None
        before = [r.before for r in results if r.before is not None]
        rows.append(
            (
                name,
                str(len(results)),
                f"{_mean(results):.2f}" + ("" if spread is None else f" +- {spread:.2f}"),
                f"{statistics.mean(before):.2f}" if before else "-",
                flops(first.flops),
                f"{first.flops / base.flops:.2f}",
                f"{first.path_flops / base.path_flops:.2f}",
                duration(statistics.mean(r.seconds for r in results)),
                duration(statistics.mean(r.path_seconds for r in results)),
                f"{first.memory_gib / base.memory_gib:.2f}",
                "-" if first.module_gib is None else f"{first.module_gib / base.memory_gib:.2f}",
                f"{first.resident_gib:.2f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def _rows(found: Mapping[str, Sequence[Result]]) -> list[Row]:
    """Return what the picture shows of each arm."""
    base = found.get(ZERO, next(iter(found.values())))[0]
    return [
        Row(
            arm=name,
            accuracies=[result.accuracy for result in results],
            before=[result.before for result in results if result.before is not None],
            flops=results[0].flops / base.flops,
            path=results[0].path_flops / base.path_flops,
            memory=(results[0].module_gib or results[0].memory_gib) / base.memory_gib,
        )
        for name, results in found.items()
    ]


def _mean(results: Sequence[Result]) -> float:
    return statistics.mean(result.accuracy for result in results)
