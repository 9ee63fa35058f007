"""``quadriga glue``: fine-tunes a BERT on the tasks of GLUE with several seeds, for one table."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

from quadriga.cli.options import Code, examples
from quadriga.config.own_code import code_options
from quadriga.errors import UserError

if TYPE_CHECKING:
    from quadriga.cli.glue.source import Source
    from quadriga.data.text.glue.tasks import GlueTask
    from quadriga.engine.run_config import RunConfig


OWN = ("seed", "data.kind", "data.root", "data.task", "warm_start.path", "name")
"""Keys that the command sets itself."""

_WIDTH = 200


@dataclass(frozen=True)
class GlueRequest:
    """The command line of ``quadriga glue``."""

    source: str
    data: Path
    overrides: tuple[str, ...] = ()
    tasks: str | None = None
    seeds: int = 3
    from_scratch: bool = False
    vocabulary: Path | None = None
    work_dir: Path | None = None
    device: str | None = None
    ranks: int | None = None
    dry_run: bool = False


@final
class _Run:
    """One task with one seed."""

    def __init__(self, task: GlueTask, seed: int, folder: Path, values: dict[str, str]) -> None:
        from quadriga.cli.resolve import resolve

        self.task, self.seed = task, seed
        self.folder = folder / task.name / f"seed_{seed}"
        self.words = tuple(f"{key}={value}" for key, value in {**values, "seed": seed}.items())
        self.recipe = f"glue_{task.name.replace('-', '_')}"
        self.config: RunConfig = resolve(self.recipe, None, self.words).config
        self.steps = 0

    def __str__(self) -> str:
        return f"{self.task.name} seed {self.seed}"

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the finished run; empty before."""
        from quadriga.cli.glue.results import metrics_of

        return metrics_of(self.folder, self.steps)

    def state(self) -> str:
        from quadriga.engine.checkpoint.store import list_checkpoints
        from quadriga.engine.logs.directory import RunDirectory

        if self.metrics():
            return "finished"
        return "begun" if list_checkpoints(RunDirectory(self.folder).checkpoints) else "new"

    def make(self) -> int:
        """Train and evaluate; return the exit code."""
        from quadriga.cli import train

        request = train.TrainRequest(
            arguments=(
                *("train", self.recipe, *self.words),
                *("--work-dir", str(self.folder), "--resume"),
                *code_options(),
            ),
            recipe=self.recipe,
            overrides=self.words,
            work_dir=self.folder,
            config=None,
            resume=True,
            resume_from=None,
            device=None,
            print_config=False,
            dry_run=False,
            ranks=None,
        )
        try:
            return train.train(request)
        except UserError as error:
            raise UserError(f"{self}: {error}") from error


def run_glue(request: GlueRequest) -> int:
    """Fine-tune every task with every seed, and print and write the results.

    Finished runs are skipped, and an interrupted run resumes.

    Returns:
        The exit code: 0, or that of a run that failed.

    Raises:
        UserError: The request is invalid; raised for all tasks before the first starts.
    """
    from quadriga.distributed.environment import read_launch

    launcher = read_launch(os.environ).launcher
    if launcher != "none":
        raise UserError(f"glue starts its own processes: use --ranks N instead of {launcher}")
    if request.seeds < 1:
        raise UserError(f"--seeds must be at least 1, but is {request.seeds}")
    source = _source(request)
    tasks = _tasks(request)
    folder = request.work_dir or Path("runs") / f"glue_{source.name}"
    values = _values(request, source)
    runs = [_Run(t, s, folder, {**values}) for t in tasks for s in range(request.seeds)]
    _check(runs, request.seeds)
    if request.dry_run:
        for run in runs:
            print(f"{run!s:<16} {run.steps:>6} steps  {run.state():<8}  {run.folder}")
        return 0
    return _make(runs, source.name, tasks, request.seeds, folder)


def _make(
    runs: Sequence[_Run], name: str, tasks: Sequence[GlueTask], seeds: int, folder: Path
) -> int:
    from quadriga.cli.glue.results import summary, write_results

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"work dir {folder} cannot be made: {error.strerror}") from error
    found: dict[str, dict[int, dict[str, float]]] = {}

    def note(run: _Run, metrics: dict[str, float]) -> None:
        found.setdefault(run.task.name, {})[run.seed] = metrics
        write_results(folder, summary(name, range(seeds), tasks, found))

    for place, run in enumerate(runs, 1):
        metrics = run.metrics()
        where = f"[{place}/{len(runs)}] {run}"
        print(f"{where}: {'finished already' if metrics else run.folder}", flush=True)
        if not metrics:
            code = run.make()
            if code != 0:
                return code
            metrics = run.metrics()
            gc.collect()  # a run's objects form reference cycles, and the next run is as large
        if not metrics:
            raise UserError(
                f"{run} has no result: evaluation.protocols must have glue; leave it as it is"
            )
        note(run, metrics)
    _print(summary(name, range(seeds), tasks, found))
    print(f"results: {folder / 'glue.md'}, {folder / 'glue.json'}")
    return 0


def _source(request: GlueRequest) -> Source:
    from quadriga.cli.glue.source import find_source

    source = find_source(request.source)
    if request.vocabulary is not None:
        source = replace(source, vocabulary=request.vocabulary.resolve())
    if request.from_scratch and source.weights is not None:
        return replace(source, weights=None, name=f"{source.name}_from_scratch")
    return source


def _tasks(request: GlueRequest) -> list[GlueTask]:
    """Return the requested tasks without duplicates; by default all tasks in the data folder.

    Raises:
        UserError: A task does not exist, or the folder has none.
    """
    from quadriga.data.text.glue.tasks import task_called, tasks_in

    if request.tasks is not None:
        words = [word for word in request.tasks.split(",") if word.strip()]
        named = {task.name: task for task in (task_called(word.strip()) for word in words)}
        if "mnli-mm" in named:
            raise UserError("--tasks: mnli is evaluated on both sets, so name mnli, not mnli-mm")
        if named:
            return list(named.values())
    found = tasks_in(request.data)
    if not found:
        raise UserError(
            f"--data must be a folder with the tasks of GLUE (CoLA, SST-2, ...), but "
            f"{request.data} holds none"
        )
    return found


def _values(request: GlueRequest, source: Source) -> dict[str, str]:
    """Return the overrides that all runs share; those of the user take precedence.

    Raises:
        UserError: The user sets a key of `OWN`.
    """
    from quadriga.config.provenance import read_overrides

    given = read_overrides(request.overrides)
    for key in given:
        if key in OWN:
            raise UserError(f"{key} is set by glue itself; leave it out")
    values = {"data.root": str(request.data), **source.values()}
    if source.model is not None and "views.max_length" not in given:
        values["views.max_length"] = str(min(128, source.model.max_positions))
    if request.device is not None:
        values["train.device"] = request.device
    if request.ranks is not None:
        values["train.ranks"] = str(request.ranks)
    return values | given


def _check(runs: Sequence[_Run], seeds: int) -> None:
    """Check all folders and one run of each task; set the number of steps of every run.

    Raises:
        UserError: A folder holds another run, or a run cannot start.
    """
    from quadriga.engine.initial_weights import check_warm_start
    from quadriga.engine.logs.directory import RunDirectory
    from quadriga.engine.preflight import check_start
    from quadriga.engine.run_config import WarmStartConfig

    for run in runs:
        RunDirectory(run.folder).check_owner(run.config)
    check_warm_start(WarmStartConfig(path=runs[0].config.warm_start.path))
    for first in range(0, len(runs), seeds):
        config = runs[first].config
        _, plan = check_start(config, config.train.ranks)
        for run in runs[first : first + seeds]:
            run.steps = plan.total_steps


def _print(summed: Mapping[str, Any]) -> None:
    from rich.console import Console as RichConsole  # every command imports this module
    from rich.table import Table

    from quadriga.cli.glue.results import average_line, rows_of

    table = Table(box=None, pad_edge=False)
    for position, name in enumerate(("task", "seeds", "score", "metrics")):
        table.add_column(name, justify="left" if position in (0, 3) else "right", overflow="fold")
    for row in rows_of(summed):
        table.add_row(*row)
    console = RichConsole(highlight=False, markup=False)
    console.print(table, width=None if console.is_terminal else _WIDTH)
    print(average_line(summed))


EPILOG = examples(
    "quadriga glue runs/bert_base --data GLUE --tasks sst2,cola,rte",
    "quadriga glue bert-base-uncased/ --data GLUE --tasks rte --seeds 5 optim.lr=3e-5",
    "quadriga glue scratch --data GLUE --vocabulary vocab.txt model.depth=4",
)


def glue(
    source: Annotated[
        str,
        typer.Argument(
            help="What is fine-tuned: a run, a checkpoint of one, the folder of a published BERT "
            "(config.json, vocab.txt, model.safetensors), or `scratch` for random weights."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder with the tasks: CoLA, SST-2, ...")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Config values, as for `quadriga train`.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, such as `sst2,cola,rte`; by default all in --data.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each task, with the seeds 0, 1, ...")] = 3,
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch", help="Random weights in a model of the same size: the floor."
        ),
    ] = False,
    vocabulary: Annotated[
        Path | None, typer.Option(help="The vocab.txt, instead of the one of the source.")
    ] = None,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where the runs live; runs/glue_SOURCE by default.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    ranks: Annotated[
        int | None, typer.Option(help="Processes of each run on this machine.", min=1)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", hidden=True, help="It goes on in any case.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, list the runs, stop.")
    ] = False,
    code: Code = None,
) -> int:
    """Fine-tune a BERT on the tasks of GLUE and print one table.

    Started again after a stop, it goes on: finished runs are not made again.
    """
    return run_glue(
        GlueRequest(
            source=source,
            data=data,
            overrides=tuple(overrides or ()),
            tasks=tasks,
            seeds=seeds,
            from_scratch=from_scratch,
            vocabulary=vocabulary,
            work_dir=work_dir,
            device=device,
            ranks=ranks,
            dry_run=dry_run,
        )
    )
