"""The child processes of `quadriga verify-resume`, which it starts, kills and resumes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

import psutil

from quadriga.config.own_code import code_options
from quadriga.engine.checkpoint.store import list_checkpoints
from quadriga.errors import EXIT_PREEMPTED, UserError
from quadriga.launch.attempts import WITH_PARENT
from quadriga.verify_resume.compare import Kill

STALL_SECONDS = 1800.0
"""Seconds without a logged step after which a child, and the verification, is ended."""

_POLL_SECONDS = 0.003


class ChildFailed(Exception):
    """A run failed or stalled; the message has its last lines."""


class Process(Protocol):
    """A process with a `poll` method, such as `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""


@final
class Progress:
    """The progress of a run, read from its logged metrics."""

    def __init__(self, work_dir: Path) -> None:
        """Record the current state of a run's folder; call it before the run starts.

        Args:
            work_dir: The run's folder, which need not exist.
        """
        self._path = work_dir / "metrics.jsonl"
        self._size, self._moved = -1, time.monotonic()
        # A child that resumes rewrites the file before its first step; until then, the file is
        # that of the previous child.
        self._before = self._identity()
        saved = list_checkpoints(work_dir / "checkpoints")
        self._start = int(saved[0].name.removeprefix("step_")) if saved else 0
        self.step = self._start

    def _identity(self) -> int | None:
        try:
            return self._path.stat().st_ino
        except FileNotFoundError:
            return None

    def wait(self, process: Process, step: int) -> bool:
        """Wait until a run has logged `step`, and at least one step since it started.

        Args:
            process: The run, or its launcher.
            step: The step, counted from 1.

        Returns:
            False if the run has ended before.

        Raises:
            ChildFailed: The run has logged nothing for `STALL_SECONDS`.
        """
        while process.poll() is None:
            if self.reached(step):
                return process.poll() is None
            time.sleep(_POLL_SECONDS)
        return False

    def reached(self, step: int) -> bool:
        """Return whether the child has logged `step`, and at least one step since it started.

        Raises:
            ChildFailed: The child has logged nothing for `STALL_SECONDS`.
        """
        if time.monotonic() - self._moved > STALL_SECONDS:
            raise ChildFailed(f"{self._path} has not grown for {STALL_SECONDS:.0f} s")
        identity = self._identity()
        if identity is None or identity == self._before:
            return False
        data = self._path.read_bytes()
        if len(data) != self._size:
            self._size, self._moved = len(data), time.monotonic()
            with contextlib.suppress(ValueError, IndexError, KeyError):
                self.step = int(json.loads(data[: data.rindex(b"\n")].splitlines()[-1])["step"])
        return self.step >= step and self.step > self._start


def family_of(pid: int) -> list[psutil.Process]:
    """Return all descendants of a process; empty if it has ended."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


def interrupt(
    process: subprocess.Popen[bytes], family: Sequence[psutil.Process], kill: Kill
) -> str:
    """Interrupt a run; return the signal's name and target."""
    if kill.how == "term":
        process.send_signal(signal.SIGTERM)
        return "SIGTERM"
    ranks = ranks_of(family)
    if kill.how == "rank" and ranks:
        rank = sorted(ranks)[int(kill.draw * len(ranks))]
        with contextlib.suppress(psutil.Error):  # the rank may have ended meanwhile
            ranks[rank].kill()
        return f"SIGKILL of rank {rank}"
    process.kill()
    end(family)  # as a scheduler kills the rest of a job whose first process is gone
    return "SIGKILL of the launcher" if ranks else "SIGKILL"


def ranks_of(family: Sequence[psutil.Process]) -> dict[int, psutil.Process]:
    """Return the oldest process of each rank, since data workers inherit the rank's variables."""
    found: dict[int, psutil.Process] = {}
    for process in family:
        with contextlib.suppress(psutil.Error):
            environ = process.environ()
            if environ.get("RANK", "").isdecimal():
                known = found.setdefault(int(environ["RANK"]), process)
                if process.create_time() < known.create_time():
                    found[int(environ["RANK"])] = process
    return found


def end(family: Sequence[psutil.Process]) -> None:
    """Kill processes, and wait up to 10 s for their end."""
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.kill()
    psutil.wait_procs(list(family), timeout=10)


PARALLEL = ("ddp", "fsdp", "hsdp", "pp")

_LEAVE_SECONDS = 600.0
_SHOWN_LINES = 12

OWN = (
    "train.steps",
    "train.epochs",
    "train.ranks",
    "train.parallel",
    "checkpoint.every_steps",
    "checkpoint.every_epochs",
    "checkpoint.keep_best",
    "log.every_steps",
    "log.samples",
    "log.loggers",
    "log.profile",
    "evaluation.protocols",
    "evaluation.every_epochs",
)
"""Keys that the verification sets itself."""


@dataclass(frozen=True)
class Layout:
    """The kind of parallelism of a run, and its number of ranks."""

    parallel: str
    ranks: int
    stages: int = 1
    """Stages of a pipeline, of which there are ``ranks / stages`` replicas."""

    def __str__(self) -> str:
        """Return the layout as text: ``ddp:2``, or ``pp:4x2`` for two replicas of four stages."""
        if self.parallel == "pp" and self.ranks > self.stages:
            return f"pp:{self.stages}x{self.ranks // self.stages}"
        return f"{self.parallel}:{self.ranks}"


def read_layout(text: str) -> Layout:
    """Parse a layout.

    Raises:
        UserError: The text does not have the form ``ddp:2`` or ``pp:4x2``.
    """
    parallel, _, ranks = text.strip().partition(":")
    if parallel == "pp" and (found := re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", ranks)):
        stages, copies = int(found[1]), int(found[2] or 1)
        return Layout(parallel, stages * copies, stages)
    if parallel not in PARALLEL or not ranks.isdecimal() or int(ranks) < 1:
        raise UserError(
            f"--layouts must be a list such as ddp:1,ddp:2,fsdp:2, but has {text.strip()!r}; "
            f"valid are {', '.join(PARALLEL)}, a colon and the number of ranks (pp:4x2: two copies "
            "of a pipeline of four)"
        )
    return Layout(parallel, int(ranks))


def own_overrides(steps: int, layout: Layout) -> list[str]:
    """Return the overrides that turn a recipe into a comparable run of `steps` steps."""
    return [
        f"train.steps={steps}",
        "train.epochs=none",
        f"train.ranks={layout.ranks}",
        f"train.parallel={'ddp' if layout.parallel == 'pp' else layout.parallel}",
        *_pipeline_overrides(layout),
        f"checkpoint.every_steps={max(1, steps // 4)}",
        "checkpoint.every_epochs=none",
        "checkpoint.keep_best=none",
        "log.every_steps=1",
        "log.samples=true",
        "log.loggers=[]",
        "log.profile=none",
        "evaluation.protocols=[]",
        "evaluation.every_epochs=none",
    ]


def _pipeline_overrides(layout: Layout) -> list[str]:
    if layout.parallel != "pp":
        return []
    return [f"executor.stages={layout.stages}", "executor.depths=none", "executor.conf=none"]


@final
class Runner:
    """Starts, interrupts and resumes one recipe on any layout."""

    def __init__(
        self,
        recipe: str,
        words: Sequence[str],
        steps: int,
        launcher: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        """Make a runner; nothing starts yet.

        Args:
            recipe: A recipe's name, or a run's config.json.
            words: The user's overrides.
            steps: Steps of every run.
            launcher: Words before ``python -m quadriga``, with ``{ranks}`` for the number of
                ranks; empty for the command's own launcher.
            say: Receives a line about each action.
        """
        self._recipe, self._words, self._steps = recipe, list(words), steps
        self._launcher, self._say = list(launcher), say

    def command(self, layout: Layout, work_dir: Path, resume: bool) -> list[str]:
        """Return the command line of one child."""
        launcher = [word.replace("{ranks}", str(layout.ranks)) for word in self._launcher]
        own = [
            "train.ranks=1" if launcher and word.startswith("train.ranks=") else word
            for word in own_overrides(self._steps, layout)
        ]
        train = ["train", self._recipe, *self._words, *own, "--work-dir", str(work_dir)]
        again = ["--resume"] if resume else []
        # -P: the current folder is no place to import from.
        return [*launcher, sys.executable, "-P", "-m", "quadriga", *train, *again, *code_options()]

    def straight(self, layout: Layout, work_dir: Path) -> None:
        """Run without an interruption.

        Raises:
            ChildFailed: The run failed or stalled.
        """
        self._say(f"{layout}: {self._steps} steps without an interruption")
        self._finish(layout, work_dir, resume=False)

    def interrupted(self, layout: Layout, work_dir: Path, kills: Sequence[Kill]) -> list[str]:
        """Run with interruptions, resume after each, and finish.

        Returns:
            A line about each interruption.

        Raises:
            ChildFailed: A child failed or stalled, or ended with an unexpected exit code.
        """
        told = []
        for count, kill in enumerate(kills):
            told.append(self.interrupt(layout, work_dir, kill, resume=count > 0))
            self._say(f"{layout}: {told[-1]}")
        self._finish(layout, work_dir, resume=True)
        return told

    def resumed(self, layout: Layout, work_dir: Path) -> None:
        """Resume on `layout` a run that another layout began, and finish.

        Raises:
            ChildFailed: The run failed or stalled.
        """
        self._say(f"{layout}: goes on to step {self._steps}")
        self._finish(layout, work_dir, resume=True)

    def interrupt(self, layout: Layout, work_dir: Path, kill: Kill, resume: bool) -> str:
        """Run until `kill` is due, and interrupt; return a line about the interruption.

        Raises:
            ChildFailed: The child failed or stalled, or ended with an unexpected exit code.
        """
        progress = Progress(work_dir)
        process = self._start(layout, work_dir, resume)
        family: list[psutil.Process] = []
        try:
            if not progress.wait(process, kill.step):
                self._require(process.returncode, (0,), work_dir)
                return f"none: it ended before step {kill.step} was seen"
            family = family_of(process.pid)
            told = f"{interrupt(process, family, kill)} after step {progress.step}"
            code = _wait(process)
            if kill.how == "term" and not self._launcher:  # other launchers use other exit codes
                self._require(code, (0, EXIT_PREEMPTED), work_dir)
        finally:
            end([*family, *family_of(process.pid)])
            process.kill()
            process.wait(_LEAVE_SECONDS)
        return told

    def _finish(self, layout: Layout, work_dir: Path, resume: bool) -> None:
        progress = Progress(work_dir)
        process = self._start(layout, work_dir, resume)
        try:
            while process.poll() is None:
                progress.reached(self._steps)
                time.sleep(0.02)
            self._require(process.returncode, (0,), work_dir)
        finally:
            if process.poll() is None:
                end(family_of(process.pid))

    def _start(self, layout: Layout, work_dir: Path, resume: bool) -> subprocess.Popen[bytes]:
        work_dir.parent.mkdir(parents=True, exist_ok=True)
        environ = dict(os.environ)
        if not self._launcher:
            environ[WITH_PARENT] = str(os.getpid())
        with _output(work_dir).open("ab") as output:
            return subprocess.Popen(
                self.command(layout, work_dir, resume),
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the verification, which ends its children
            )

    def _require(self, code: int, good: Sequence[int], work_dir: Path) -> None:
        if code in good:
            return
        lines = _output(work_dir).read_text(encoding="utf-8", errors="replace").splitlines()
        shown = "\n".join(f"    {line}" for line in lines[-_SHOWN_LINES:])
        raise ChildFailed(f"the run in {work_dir} ended with exit code {code}:\n{shown}")


def _output(work_dir: Path) -> Path:
    """Return the file for the output of a run's processes, beside the run's folder."""
    return work_dir.with_name(f"{work_dir.name}.output.txt")


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(_LEAVE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ChildFailed(
            f"a run has not ended {_LEAVE_SECONDS:.0f} s after it was interrupted"
        ) from error
