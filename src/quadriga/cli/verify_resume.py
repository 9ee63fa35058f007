"""``quadriga verify-resume``: proves for a recipe on this machine that resumed runs are equal."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from rich.console import Console
from rich.table import Table
from torch import Tensor

from quadriga.cli.resolve import resolve
from quadriga.config.provenance import read_overrides
from quadriga.engine.preflight import check_start
from quadriga.errors import UserError
from quadriga.verify_resume.children import (
    OWN,
    ChildFailed,
    Layout,
    Runner,
    own_overrides,
    read_layout,
)
from quadriga.verify_resume.compare import (
    EQUAL,
    Comparison,
    Kill,
    RunRecord,
    compare,
    fingerprint,
    greatest_difference,
    plan_kills,
    planned_samples,
    read_run,
    read_tensors,
    samples_difference,
)

_FEWEST_STEPS, _WIDTH = 4, 160
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class VerifyRequest:
    """The command line of ``quadriga verify-resume``."""

    recipe: str
    overrides: tuple[str, ...] = ()
    steps: int = 12
    kills: int = 4
    ranks: str = "1,2"
    layouts: str | None = None
    seed: int = 0
    launcher: str = ""
    work_dir: Path | None = None
    json: bool = False


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    case: str
    layout: str
    interruptions: str
    parameters: str
    optimizer: str
    metrics: str
    samples: str
    passed: bool


def bit_equal_case(case: str, layout: str, interruptions: str, found: Comparison) -> Case:
    """Return the row for two runs that must be equal bit by bit."""
    values = asdict(found)
    passed = all(value == EQUAL for value in values.values())
    return Case(case, layout, interruptions, **values, passed=passed)


def verify(request: VerifyRequest) -> int:
    """Run, kill, resume, compare and print.

    Returns:
        The exit code: 0 if all parts that must be equal are equal, else 1.

    Raises:
        UserError: The request is invalid, or a run failed.
    """
    layouts = _layouts(request)
    _check(request, layouts)
    kept = request.work_dir
    if kept is not None and kept.is_dir() and any(kept.iterdir()):
        raise UserError(f"--work-dir must be an empty or a new folder, but {kept} is not empty")
    folder = Path(tempfile.mkdtemp(prefix="quadriga-verify-")) if kept is None else kept
    verification = _Verification(request, layouts, folder)
    try:
        cases = verification.run()
    except ChildFailed as error:
        print(f"error: {error}\nthe runs are in {folder}", file=sys.stderr)
        return 1
    code = conclude(request, cases, verification.fingerprints)
    if code == 0 and kept is None:
        shutil.rmtree(folder, ignore_errors=True)
    elif not request.json:
        print(f"the runs are in {folder}")
    return code


def _layouts(request: VerifyRequest) -> list[Layout]:
    executor = resolve(request.recipe, None, request.overrides).config.executor
    kind = "pp" if executor.is_cut else "ddp"
    texts = [f"{kind}:{ranks.strip()}" for ranks in request.ranks.split(",")]
    if request.layouts is not None:
        texts = request.layouts.split(",")
    return list(dict.fromkeys(read_layout(text) for text in texts))


def _launcher(request: VerifyRequest) -> list[str]:
    """Return the words of the launcher's command line."""
    try:
        words = shlex.split(request.launcher)
    except ValueError as error:
        raise UserError(f"--launcher cannot be read: {error}") from error
    if words and shutil.which(words[0]) is None:
        raise UserError(f"--launcher: {words[0]} is no command on this machine; give its full path")
    return words


def _check(request: VerifyRequest, layouts: Sequence[Layout]) -> None:
    """Check the request before any process starts.

    Raises:
        UserError: The request is invalid.
    """
    if request.steps < _FEWEST_STEPS:
        raise UserError(f"--steps must be at least {_FEWEST_STEPS}, but is {request.steps}")
    most = request.steps - 2  # at different steps, and none after the last two
    if request.kills > most:
        raise UserError(f"--kills must be at most --steps - 2 ({most}), but is {request.kills}")
    _launcher(request)
    for key in read_overrides(request.overrides):
        if key in OWN:
            raise UserError(f"{key} is set by verify-resume itself; leave it out")
    for layout in layouts:
        words = [*request.overrides, *own_overrides(request.steps, layout)]
        check_start(resolve(request.recipe, None, words).config, layout.ranks)


@final
class _Verification:
    """All runs of one request, and their comparisons."""

    def __init__(self, request: VerifyRequest, layouts: Sequence[Layout], folder: Path) -> None:
        self._request, self._layouts, self._folder = request, layouts, folder
        self._began = time.monotonic()
        launcher = _launcher(request)
        self._runner = Runner(request.recipe, request.overrides, request.steps, launcher, self._say)
        self._straight: dict[Layout, RunRecord] = {}
        self.fingerprints: dict[str, dict[str, str]] = {}

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:6.0f} s] {text}", file=sys.stderr, flush=True)

    def run(self) -> list[Case]:
        cases = [self._straight_case(layout) for layout in self._layouts]
        cases += [self._killed_case(layout) for layout in self._layouts]
        for first, second in itertools.pairwise(self._layouts):
            cases.append(self._layouts_case(first, second))
            cases.append(self._change_case(first, second))
        return cases

    def _place(self, name: str, layout: Layout) -> Path:
        return self._folder / f"{name}_{layout}".replace(":", "_")

    def _straight_case(self, layout: Layout) -> Case:
        """Run without interruption; the samples must be those that seed and steps determine."""
        request, place = self._request, self._place("straight", layout)
        self._runner.straight(layout, place)
        record = self._straight[layout] = read_run(place, request.steps)
        sums = self.fingerprints[str(layout)] = {
            "parameters": fingerprint(record.parameters()),
            "optimizer": fingerprint(record.optimizer()),
            "metrics": fingerprint(list(record.metrics)),
            "samples": fingerprint([list(sample) for sample in record.samples]),
        }
        words = [*request.overrides, *own_overrides(request.steps, layout)]
        config = resolve(request.recipe, None, words).config
        _, plan = check_start(config, layout.ranks)
        planned = planned_samples(config, plan, request.steps)
        read = [(sample.step, sample.position, sample.key) for sample in record.samples]
        samples = "as planned" if read == planned else "DIFFERENT from the plan"
        marks = {name: sums[name][:8] for name in ("parameters", "optimizer", "metrics")}
        passed = read == planned
        return Case("straight", str(layout), "", **marks, samples=samples, passed=passed)

    def _killed_case(self, layout: Layout) -> Case:
        request, place = self._request, self._place("killed", layout)
        kills = plan_kills(request.seed, request.steps, request.kills)
        told = self._runner.interrupted(layout, place, kills)
        found = compare(self._straight[layout], read_run(place, request.steps))
        return bit_equal_case("killed, resumed", str(layout), "\n".join(told), found)

    def _layouts_case(self, first: Layout, second: Layout) -> Case:
        """Compare two uninterrupted runs: equal samples, and values that differ by rounding."""
        return self._across(
            "two layouts",
            f"{first} / {second}",
            "",
            (self._place("straight", first), self._straight[first]),
            (self._place("straight", second), self._straight[second]),
        )

    def _change_case(self, first: Layout, second: Layout) -> Case:
        """Stop a run on one layout and resume it on another."""
        place = self._folder / f"changed_{first}_{second}".replace(":", "_")
        kill = Kill(self._request.steps // 2, "term", 0.0)
        told = self._runner.interrupt(first, place, kill, resume=False)
        self._say(f"{first}: {told}")
        self._runner.resumed(second, place)
        return self._across(
            "layout changed",
            f"{first} -> {second}",
            told,
            (self._place("straight", second), self._straight[second]),
            (place, read_run(place, self._request.steps)),
        )

    def _across(
        self,
        case: str,
        layout: str,
        told: str,
        first: tuple[Path, RunRecord],
        second: tuple[Path, RunRecord],
    ) -> Case:
        checkpoint = f"checkpoints/step_{self._request.steps:08d}"
        one, other = (read_tensors(place / checkpoint) for place, _ in (first, second))
        samples = samples_difference(first[1].samples, second[1].samples)
        losses = [[float(line["loss"]) for line in record.metrics] for _, record in (first, second)]
        loss = max(abs(a - b) / max(abs(a), abs(b), 1e-30) for a, b in zip(*losses, strict=True))
        return Case(
            case,
            layout,
            told,
            parameters=_difference(one, other, first[1].parameters()),
            optimizer=_difference(one, other, first[1].optimizer()),
            metrics=f"loss {loss:.1e}",
            samples=samples,
            passed=samples == EQUAL,
        )


def _difference(one: Tensors, other: Tensors, names: Iterable[str]) -> str:
    kept = list(names)
    if any(name not in other for name in kept):
        return "other names"
    value, name = greatest_difference({n: one[n] for n in kept}, {n: other[n] for n in kept})
    return f"{value:.1e} ({name})" if name else EQUAL


def conclude(
    request: VerifyRequest, cases: Sequence[Case], fingerprints: Mapping[str, Mapping[str, str]]
) -> int:
    """Print the results; return the exit code."""
    passed = all(case.passed for case in cases)
    if request.json:
        result = {
            "passed": passed,
            "recipe": request.recipe,
            "steps": request.steps,
            "seed": request.seed,
            "sha256": {layout: dict(sums) for layout, sums in fingerprints.items()},
            "cases": [asdict(case) for case in cases],
        }
        print(json.dumps(result, indent=2))
        return 0 if passed else 1
    table = Table()
    for name in ("case", "layout", "killed at", "parameters", "optimizer", "metrics", "samples"):
        table.add_column(name, overflow="fold")
    for case in cases:
        cells = [*asdict(case).values()][:-1]
        table.add_row(*map(str, cells), style=None if case.passed else "red")
    # Output to a file has no width of its own; rich's default of 80 columns would break words.
    Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH).print(table)
    bad = sum(not case.passed for case in cases)
    found = f"{bad} of {len(cases)} cases are DIFFERENT"
    print(found if bad else f"{len(cases)} of {len(cases)} cases are as they must be")
    print(
        "straight runs show the first digits of SHA-256; within a layout every bit must be equal, "
        "across layouts the samples, and the greatest relative difference is shown"
    )
    return 0 if passed else 1
