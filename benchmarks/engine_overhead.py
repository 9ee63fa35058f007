"""What the engine costs: a bare PyTorch loop beside `train()`, interleaved.

    python benchmarks/engine_overhead.py [--recipe mae_cifar10] [--steps 20] [--repeats 5]

Three sides train the same model, from the same weights, on the same batches:

* *bare*: a loop as one writes it by hand. It reads each batch itself, in this process; which
  samples it takes is worked out beforehand, outside the clock. No gradient norm, no journal; it
  looks at the loss as often as the engine does.
* *bare, our loader*: the same loop over the engine's `Loader` (``workers=0``): its overhead.
* *train()*: the engine with `DataParallelExecutor`, `Loader` and `Journal` (metrics.jsonl,
  TensorBoard, console line) as a run has them. The checkpoint at the end is outside the clock.

The recipe's data is replaced by the digits that ship with scikit-learn, in its image size. The
repeats are interleaved and start with another side each time; a ratio is that of the medians, the
quartiles are those of the repeats' own ratios. Trust the processor time where cores are shared.
The last losses are printed: they agree if the work was the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, final

import torch

from quadriga.contracts import Executor, MicroBatch, Objective, StepOutput, stack
from quadriga.data.reading.loader import Loader
from quadriga.data.reading.sampling import step_samples
from quadriga.distributed.environment import DistEnv, pick_device
from quadriga.engine.build import EXACT, build_loader, build_objective
from quadriga.engine.checkpoint.store import CheckpointStore
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.journal import Journal
from quadriga.engine.loop import train
from quadriga.engine.run_config import CheckpointConfig, LogConfig, RunConfig
from quadriga.engine.run_plan import RunPlan, make_plan
from quadriga.engine.step.data_parallel import DataParallelExecutor
from quadriga.recipes.find import find_recipe

LOG, SAVING = LogConfig(), CheckpointConfig(keep=1)


class Seconds(NamedTuple):
    """What some steps took."""

    wall: float
    processor: float


@final
@dataclass
class Stopwatch:
    """Wall and processor seconds of this process since it was made."""

    device: torch.device
    _began: Seconds = field(init=False)

    def __post_init__(self) -> None:
        """Start, when everything that was asked of the device before is done."""
        self._began = self._now()

    def _now(self) -> Seconds:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return Seconds(time.perf_counter(), time.process_time())

    def read(self) -> Seconds:
        """Return the seconds so far."""
        now = self._now()
        return Seconds(now.wall - self._began.wall, now.processor - self._began.processor)


@dataclass(frozen=True)
class Setting:
    """What all sides share."""

    config: RunConfig
    plan: RunPlan
    env: DistEnv

    def loader(self) -> Loader:
        """Make the engine's loader, reading in this process."""
        dataset = self.config.data.build("train")
        return build_loader(self.config, dataset, self.plan, self.env, EXACT)

    def objective(self) -> Objective:
        """Make the objective: the same weights at each call."""
        return build_objective(self.config, self.env.device, self.config.seed)

    def read_by_hand(self, steps: range) -> Iterator[MicroBatch]:
        """Yield the batches of `steps` as a plain loop reads them; `steps` is drawn at once."""
        dataset, transform = self.config.data.build("train"), self.config.views.build("train")
        size, batch_size = self.plan.dataset_size, self.plan.batch_size
        seed, repeats = self.config.seed, self.config.train.repeats
        drawn = [step_samples(seed, size, batch_size, step, repeats) for step in steps]

        def read() -> Iterator[MicroBatch]:
            for index, key in drawn:
                pairs = zip(index.tolist(), key.tolist(), strict=True)
                samples = [transform.sample(dataset.read(i), k) for i, k in pairs]
                batch = stack(samples, index, key)
                moved = {name: t.to(self.env.device) for name, t in batch.items()}
                yield MicroBatch(transform.batch(moved))

        return read()


@final
class BareLoop:
    """The loop that a researcher writes by hand."""

    def __init__(self, setting: Setting, read: Callable[[range], Iterator[MicroBatch]]) -> None:
        """Take the batches of given steps from `read`."""
        self._setting, self._read = setting, read
        self._objective = setting.objective()
        named = list(self._objective.named_parameters())
        self._optimizer = setting.config.optim.build(named)
        self.loss = 0.0

    def __call__(self, steps: range) -> Seconds:
        """Train `steps` and return what they took."""
        plan, schedule = self._setting.plan, self._setting.config.schedule
        objective, optimizer = self._objective, self._optimizer
        batches = self._read(steps)
        watch = Stopwatch(self._setting.env.device)
        objective.train()
        for step in steps:
            batch = next(batches)
            lr = plan.lr * schedule.factor(plan.progress(step))
            for group in optimizer.param_groups:
                group["lr"] = lr
            output = objective(batch)
            loss = output.value
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (step + 1) % LOG.every_steps == 0:
                self.loss = loss.item()
        self.loss = loss.item()
        return watch.read()


@final
class Timed(Executor):
    """An executor that times its segment, the loop's work with each output included."""

    def __init__(self, executor: Executor, device: torch.device) -> None:
        """Time `executor`."""
        self._executor, self._device = executor, device
        self.seconds, self.loss = Seconds(0, 0), torch.zeros(())

    def run(self, batches: Iterator[MicroBatch], steps: range) -> Iterator[StepOutput]:
        """Make the steps; see `Executor.run`."""
        watch = Stopwatch(self._device)
        for output in self._executor.run(batches, steps):
            yield output
            self.loss = output.metrics["loss"]
        self.seconds = watch.read()

    def frozen(self, weights: str = "raw") -> AbstractContextManager[Objective]:
        """Give the objective; see `Executor.frozen`."""
        return self._executor.frozen(weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the state; see `Executor.state_dict`."""
        return self._executor.state_dict()

    def match_state(self, names: Collection[str]) -> None:
        """Make or drop state; see `Executor.match_state`."""
        self._executor.match_state(names)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state."""
        self._executor.load_state_dict(state)


@final
class Engine:
    """The same steps through `train()`."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        """Keep the run's files in `folder`."""
        self._setting, self._directory = setting, RunDirectory(folder)
        self._directory.create()
        config = setting.config
        executor = DataParallelExecutor(setting.objective(), config, setting.plan, setting.env)
        self._executor = Timed(executor, setting.env.device)
        self._store = CheckpointStore(self._directory.checkpoints, setting.env, SAVING, "")
        # One journal of the whole run, so that the ends of the repeats are not logged as well.
        self._journal = Journal(self._directory, LOG, setting.plan, setting.env, Console(), 0)

    @property
    def loss(self) -> float:
        """Loss of the last step."""
        return float(self._executor.loss)

    def __call__(self, steps: range) -> Seconds:
        """Train `steps` and return what they took."""
        end, start = steps.stop, steps.start
        plan = replace(
            self._setting.plan, total_steps=end, checkpoint_every=end, evaluate_every=end
        )
        with self._setting.loader() as loader:
            train(self._executor, loader, plan, start, self._journal, self._store, lambda step: {})
        return self._executor.seconds

    def close(self) -> None:
        """Close the journal."""
        self._journal.__exit__(None, None, None)


def setting_of(recipe: str, device: str, steps: int) -> Setting:
    """Return the recipe on the digits, `steps` long, without workers."""
    config: RunConfig = find_recipe(recipe)()
    digits = {"kind": "digits", "image_px": config.views.as_dict()["image_px"]}
    config = config.override(
        {"data": digits, "train.epochs": None, "train.steps": steps, "train.accumulate": 1}
    )
    env = DistEnv(0, 1, 0, 1, pick_device(device, 0))
    return Setting(config, make_plan(config, len(config.data.build("train")), 1), env)


def measure(
    sides: dict[str, Callable[[range], Seconds]], steps: int, repeats: int
) -> dict[str, list[Seconds]]:
    """Return what each repeat took on each side, after one repeat that does not count."""
    names = list(sides)
    taken: dict[str, list[Seconds]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = sides[name](range(repeat * steps, (repeat + 1) * steps))
            if repeat:
                taken[name].append(seconds)
    return taken


def table(taken: dict[str, list[Seconds]], losses: dict[str, float], steps: int) -> list[str]:
    """Return the lines of the table: milliseconds per step and the ratio to the first side."""
    columns = f"{'ms':>10}{'ratio':>8}{'quartiles':>14}"
    lines = [
        f"{'':<18}{'wall':>20}{'':>12}{'processor':>22}",
        f"{'':<18}{columns}{columns}{'last loss':>12}",
    ]
    first = next(iter(taken.values()))
    for name, side in taken.items():
        cells = ""
        for clock in range(2):
            mine = statistics.median(s[clock] for s in side)
            ratio = mine / statistics.median(s[clock] for s in first)
            pairs = [s[clock] / f[clock] for s, f in zip(side, first, strict=True)]
            low, _, high = statistics.quantiles(pairs, n=4)
            cells += f"{mine / steps * 1000:>10.2f}{ratio:>8.3f}{low:>8.3f}-{high:.3f}"
        lines.append(f"{name:<18}{cells}{losses[name]:>12.6f}")
    return lines


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="mae_cifar10")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    total = options.steps * (options.repeats + 1)
    setting = setting_of(options.recipe, options.device, total)
    with tempfile.TemporaryDirectory() as folder, setting.loader() as loader:
        engine = Engine(setting, Path(folder))
        sides: dict[str, BareLoop | Engine] = {
            "bare": BareLoop(setting, setting.read_by_hand),
            "bare, our loader": BareLoop(setting, loader.batches),
            "train()": engine,
        }
        taken = measure(dict(sides), options.steps, options.repeats)
        losses = {name: side.loss for name, side in sides.items()}
        engine.close()
    spans = f"{options.repeats} repeats of {options.steps} steps, {options.threads} thread(s)"
    print(f"{options.recipe}, batch {setting.plan.batch_size}, {spans}, {setting.env.device}")
    print("\n".join(table(taken, losses, options.steps)))


if __name__ == "__main__":
    main()
