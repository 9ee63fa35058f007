"""``quadriga run`` and ``quadriga status``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, final

import typer

from quadriga.cli.options import Code, examples
from quadriga.errors import UserError
from quadriga.files import write_text
from quadriga.formatting import bytes_, count, flops

if TYPE_CHECKING:
    from quadriga.cli.workflow.resolve import ResolvedWorkflow
    from quadriga.engine.run_config import RunConfig
    from quadriga.workflow.directory import Graph, Planned, WorkflowDirectory
    from quadriga.workflow.launcher import NodeLauncher, Task
    from quadriga.workflow.runner import Outcome, WorkflowRunner


@dataclass(frozen=True)
class RunRequest:
    """The command line of ``quadriga run``."""

    recipe: str
    overrides: tuple[str, ...] = ()
    work_dir: Path | None = None
    slots: int | None = None
    ranks_per_run: int | None = None
    device: str | None = None
    only: tuple[str, ...] = ()
    max_restarts: int = 0
    dry_run: bool = False


def run_workflow(request: RunRequest, launcher: NodeLauncher | None = None) -> int:
    """Run or resume the runs of a workflow, and write ledger and reports.

    Args:
        request: The command line.
        launcher: Starts the nodes; as processes of this machine by default.

    Returns:
        The exit code: 0; that of the first node that failed; 75 or 130 if a signal stopped it.

    Raises:
        UserError: The request is invalid; raised for all nodes before the first starts.
    """
    from quadriga.cli.workflow.resolve import resolve_workflow
    from quadriga.distributed.environment import read_launch

    started_by = read_launch(os.environ).launcher
    if started_by != "none":
        raise UserError(
            f"run starts its own processes: use --ranks-per-run N instead of {started_by}"
        )
    options = {"train.ranks": request.ranks_per_run, "train.device": request.device}
    return make(resolve_workflow(request.recipe, request.overrides, options), request, launcher)


def make(
    resolved: ResolvedWorkflow, request: RunRequest, launcher: NodeLauncher | None = None
) -> int:
    """Make the runs of a resolved workflow; see `run_workflow`."""
    from quadriga.cli.workflow.resolve import REFERENCE_NAME
    from quadriga.workflow.directory import Graph, WorkflowDirectory
    from quadriga.workflow.graph import order_of
    from quadriga.workflow.preview import Planner

    workflow = resolved.workflow
    # Absolute, so that the paths in the nodes' configs do not depend on the current directory.
    path = Path(os.path.abspath(request.work_dir or Path("runs") / workflow.name))
    directory = WorkflowDirectory(path)
    directory.check_owner(workflow.name)
    _check_unchanged(directory, resolved)
    configs = {name: resolved.nodes[name].config for name in order_of(resolved.needs)}
    extra = {} if workflow.reference is None else {REFERENCE_NAME: workflow.reference}
    planned = Planner(_check, request.dry_run).plan_all(configs | extra)
    reference = planned.pop(REFERENCE_NAME, None)
    graph = Graph(workflow.name, workflow.result, resolved.needs, planned, reference)
    chosen = _chosen(request.only, graph, directory, configs)
    if request.dry_run:
        _rehearse(graph, configs)
        return 0
    with directory.lock():
        _check_unchanged(directory, resolved)
        _write(directory, graph)
        return _Run(request, resolved, directory, graph, launcher).make(chosen)


def _check(config: RunConfig) -> None:
    from quadriga.distributed.environment import pick_device

    for local_rank in range(config.train.ranks):
        pick_device(config.train.device, local_rank)


def _check_unchanged(directory: WorkflowDirectory, resolved: ResolvedWorkflow) -> None:
    """Check that the configs of nodes that have begun are unchanged.

    Raises:
        UserError: Some configs differ; the message lists all of them.
    """
    from quadriga.workflow.graph import order_of

    changed = {
        name: text
        for name in order_of(resolved.needs)
        if (text := directory.difference(name, resolved.nodes[name].config)) is not None
    }
    if changed:
        raise UserError(
            f"work dir {directory.path} has begun with another config: "
            f"{'; '.join(f'{name}: {text}' for name, text in changed.items())}; give the same "
            "overrides, remove these nodes' folders and all that starts from them, or choose "
            "another --work-dir"
        )


def _chosen(
    only: Sequence[str],
    graph: Graph,
    directory: WorkflowDirectory,
    configs: Mapping[str, RunConfig],
) -> list[str]:
    """Return the nodes to make, in topological order.

    Raises:
        UserError: A name matches no node, or a node that another one needs would be missing.
    """
    from quadriga.workflow.graph import matching, order_of

    order = order_of(graph.needs)
    if not only:
        return order
    wanted = {n for pattern in only for n in matching(pattern, graph.nodes, f"--only {pattern}")}
    for name in wanted:
        for other in graph.needs[name]:
            if other not in wanted and not directory.is_finished(
                other, configs[other], graph.planned[other].total_steps
            ):
                raise UserError(
                    f"--only: {name} starts from {other}, which is not finished; add --only {other}"
                )
    return [name for name in order if name in wanted]


def _write(directory: WorkflowDirectory, graph: Graph) -> None:
    try:
        directory.write_graph(graph)
    except OSError as error:
        raise UserError(
            f"work dir {directory.path} cannot be written: {error.strerror}; make room or choose "
            "another --work-dir"
        ) from error


def _rehearse(graph: Graph, configs: Mapping[str, RunConfig]) -> None:
    """Print the size and the cost of each node."""
    from quadriga.cli.workflow.show import UNKNOWN, show, table_of
    from quadriga.workflow.graph import levels_of, order_of

    levels = levels_of(graph.needs)

    def row(name: str, planned: Planned) -> tuple[str, ...]:
        """Return the table cells of one run."""
        memory, work = planned.memory_gib, planned.flops
        return (
            name,
            f"{planned.total_steps} x {planned.batch_size}",
            str(planned.ranks),
            f"{count(planned.parameters)}, {count(planned.trainable_parameters)} trainable",
            UNKNOWN if work is None else flops(work),
            UNKNOWN if memory is None else bytes_(memory * 2**30),
        )

    rows = [
        row(f"{'  ' * levels[name]}{name}{' *' if name == graph.result else ''}", planned)
        for name, planned in ((n, graph.planned[n]) for n in order_of(graph.needs))
    ]
    if graph.reference is not None:
        rows.append(row("reference, not run", graph.reference))
    columns = ("node", "steps x batch", "ranks", "parameters", "operations", "memory per rank")
    show(table_of(columns, rows, columns[1:3] + columns[4:]))


@final
class _Run:
    """The execution of a workflow whose directory is locked."""

    def __init__(
        self,
        request: RunRequest,
        resolved: ResolvedWorkflow,
        directory: WorkflowDirectory,
        graph: Graph,
        launcher: NodeLauncher | None,
    ) -> None:
        self._request, self._resolved = request, resolved
        self._directory, self._graph = directory, graph
        self._launcher = launcher or self._local()

    def make(self, chosen: Sequence[str]) -> int:
        """Make the chosen nodes, then write ledger and report; return the exit code."""
        from quadriga.cli.workflow.show import Live
        from quadriga.workflow.runner import WorkflowRunner

        graph, directory = self._graph, self._directory
        finished = {name for name in graph.nodes if self._is_finished(name)}
        live = Live(directory, graph)
        for name in chosen:
            if name in finished:
                live.say(f"{name}: finished already")
        runner = WorkflowRunner(
            graph.needs,
            {name: self._task(name) for name in chosen if name not in finished},
            finished,
            self._launcher,
            self._prepare,
            self._is_finished,
            max_restarts=self._request.max_restarts,
        )
        with live:
            outcome = runner.run(live.watch)
        self._sum_up(outcome, runner)
        return outcome.exit_code

    def _local(self) -> NodeLauncher:
        import torch

        from quadriga.engine.logs.environment import cores
        from quadriga.workflow.launcher import LocalLauncher, default_slots, visible_devices

        gpus = torch.cuda.device_count()
        if all(node.config.train.device == "cpu" for node in self._resolved.nodes.values()):
            gpus = 0
        devices = visible_devices(gpus, os.environ)
        ranks = max(node.config.train.ranks for node in self._resolved.nodes.values())
        slots = self._request.slots or default_slots(len(devices), ranks)
        return LocalLauncher(slots, devices, cores(), os.environ)

    def _task(self, name: str) -> Task:
        from quadriga.workflow.launcher import Task

        train = self._resolved.nodes[name].config.train
        directory = self._directory
        return Task(
            name, directory.config_of(name), directory.run_of(name), train.ranks, train.device
        )

    def _is_finished(self, name: str) -> bool:
        config, planned = self._resolved.nodes[name].config, self._graph.planned[name]
        return self._directory.is_finished(name, config, planned.total_steps)

    def _prepare(self, name: str) -> None:
        """Write a node's config, with directories in place of its references."""
        from quadriga.config.provenance import Resolved
        from quadriga.workflow.graph import bind, references

        node, directory = self._resolved.nodes[name], self._directory
        before = directory.read_config(name) if directory.has_begun(name) else None
        if before is None:
            config = bind(node.config, lambda other: str(directory.run_of(other)))
            directory.set_aside_if_void(name, config)
        else:
            # The node has already read its sources, so their recorded paths stay unchanged.
            there = dict(before.leaves())
            edges = {path: there[path] for path in references(node.config)}
            config = node.config.override(edges)
        text = Resolved(config, node.sources).as_json()
        try:
            write_text(directory.config_of(name), text)
        except OSError as error:
            raise UserError(
                f"{directory.config_of(name)} cannot be written: {error.strerror}; make room"
            ) from error

    def _sum_up(self, outcome: Outcome, runner: WorkflowRunner) -> None:
        """Write the ledger and the reports, and print the state of the nodes."""
        from quadriga.cli.workflow.show import ledger_table, show, state_table
        from quadriga.report.run import write_report
        from quadriga.report.workflow import write_workflow_report

        graph, directory = self._graph, self._directory
        for name in graph.nodes:
            page = directory.run_of(name) / "report" / "index.html"
            if outcome.progress[name] == "finished" and not page.exists():
                write_report(directory.run_of(name))  # the run was killed before its report
        states = directory.states(graph)
        ledger = directory.write_ledger(graph, states)
        report = write_workflow_report(directory)
        print()
        show(state_table(graph, states))
        print()
        show(ledger_table(ledger))
        print(f"report: {report}")
        for name, text in outcome.errors.items():
            print(f"error: {name}: {text}", file=sys.stderr, flush=True)
        waiting = [name for name in graph.nodes if outcome.progress[name] == "waits"]
        for name in waiting if outcome.errors else ():
            others = ", ".join(runner.blocked_by(name))
            print(f"{name} waits for {others}", file=sys.stderr, flush=True)
        if outcome.errors:
            name = next(iter(outcome.errors))
            print(
                f"the same command goes on; {name}:KEY=VALUE gives {name} another value",
                file=sys.stderr,
                flush=True,
            )
        if outcome.asked_by is not None:
            print("stopped; the same command goes on", file=sys.stderr, flush=True)


RUN_EPILOG = examples(
    "quadriga run deep_incubation_digits --slots 2",
    "quadriga run deep_incubation_vit_base data.root=/data/imagenet --ranks-per-run 8",
    "quadriga run mae_digits_two_stage train.batch_size=32 high:optim.lr=1e-3 --dry-run",
)
STATUS_EPILOG = examples(
    "quadriga status runs/deep_incubation_digits", "quadriga status runs/x --json"
)


def run(
    recipe: Annotated[str, typer.Argument(help="A workflow (see `quadriga recipes`).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Config values for all nodes, `train.batch_size=64`, or for some: "
            "`module_*:train.epochs=5`."
        ),
    ] = None,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where the runs live; runs/NAME by default.")
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            help="Nodes that run at once; by default one for every --ranks-per-run GPUs, or 1.",
            min=1,
        ),
    ] = None,
    ranks_per_run: Annotated[
        int | None,
        typer.Option(help="Processes of each node; short for train.ranks of all.", min=1),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda; short for train.device of all.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Make these nodes only: a name or `module_*`; may be repeated."),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(help="How often a node that was killed is started again.", min=0)
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", hidden=True, help="It goes on in any case.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print what it would be, stop.")
    ] = False,
    code: Code = None,
) -> int:
    """Make the runs of a workflow, side by side where they can be.

    Started again after a stop or a kill, it goes on: finished nodes are not made again.
    """
    return run_workflow(
        RunRequest(
            recipe=recipe,
            overrides=tuple(overrides or ()),
            work_dir=work_dir,
            slots=slots,
            ranks_per_run=ranks_per_run,
            device=device,
            only=tuple(only or ()),
            max_restarts=max_restarts,
            dry_run=dry_run,
        )
    )


def status(
    work_dir: Annotated[Path, typer.Argument(help="The work directory of a workflow or a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    code: Code = None,
) -> None:
    """Show how far a workflow or a run is, and what it has cost; also while it runs."""
    from quadriga.cli.workflow import show as command

    command.status(work_dir, as_json)
