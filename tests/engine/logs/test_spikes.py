"""A loss that stands out is one line and one event, wherever it is in the log's interval."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
import torch

from errors import assert_says
from quadriga.contracts import StepOutput
from quadriga.distributed.environment import SINGLE, DistEnv
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.journal import Events, Journal, SpikeDetector
from quadriga.engine.run_config import HealthConfig, LogConfig
from quadriga.engine.run_plan import RunPlan

CONFIG = HealthConfig(window=8, spike_factor=4.0)
CALM = [1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.0, 1.1]


def spikes(losses: list[float], config: HealthConfig = CONFIG) -> list[int]:
    detector = SpikeDetector(config)
    return [i for i, loss in enumerate(losses) if detector.see(i, loss) is not None]


def limit(losses: list[float]) -> float:
    """The definition, written out."""
    middle = sorted(losses)[len(losses) // 2 - 1 : len(losses) // 2 + 1]
    median = sum(middle) / 2
    return median + 4 * statistics.median([abs(loss - median) for loss in losses])


def test_the_limit_is_median_plus_factor_times_median_deviation() -> None:
    assert spikes([*CALM, limit(CALM) * 0.999]) == []
    assert spikes([*CALM, limit(CALM) * 1.001]) == [8]


def test_the_window_slides() -> None:
    # After eight losses near 3, one of 3.1 is nothing; right after the calm ones it is a spike.
    assert spikes([*CALM, 3.1]) == [8]
    assert spikes([*(value + 2 for value in CALM), 3.1]) == []
    assert spikes([*CALM, *(value + 2 for value in CALM), 3.1]) == [8]


def test_a_quarter_of_the_window_is_needed() -> None:
    assert spikes([1.0, 50.0]) == []
    assert spikes([1.0, 1.1, 50.0]) == [2]


def test_losses_above_the_limit_in_a_row_are_one_spike() -> None:
    assert spikes([*CALM, 9.0, 9.0, 1.0, 9.0]) == [8, 11]


def test_what_is_not_finite_and_what_hardly_moves_is_no_spike() -> None:
    assert spikes([*CALM, math.inf, math.nan, 1.0]) == []
    assert spikes([2.0] * 8 + [2.001, 1.0, -50.0]) == []
    assert spikes([2.0] * 8 + [2.01]) == [8]


def test_spikes_can_be_switched_off() -> None:
    assert spikes([*CALM, 90.0], CONFIG.override({"spike_factor": None})) == []


def test_the_sentence() -> None:
    detector = SpikeDetector(CONFIG)
    said = [detector.see(step, loss) for step, loss in enumerate([*CALM, 7.5], start=1)]
    assert_says(said[-1], "step 9", "7.5", "8 losses", "1", "0.1")


def journal(folder: Path, losses: list[float], every: int, env: DistEnv = SINGLE) -> None:
    plan = RunPlan(
        total_steps=100,
        batch_size=8,
        accumulate=1,
        world_size=env.world_size,
        dataset_size=32,
        lr=0.1,
        checkpoint_every=100,
        evaluate_every=100,
    )
    config, directory = LogConfig(every_steps=every, loggers=()), RunDirectory(folder)
    with Journal(directory, config, plan, env, Console(False), 0, health=CONFIG) as written:
        for step, loss in enumerate(losses):
            metrics = {"loss": torch.tensor(loss, dtype=torch.float64)}
            norm = torch.tensor(1.0)
            written.step(StepOutput(step, metrics, norm, 0.1, 8, {"step": 0.1, "data": 0.0}))


@pytest.mark.parametrize("every", [1, 5, 50])
def test_every_loss_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], every: int
) -> None:
    journal(tmp_path, [*CALM, 7.5, *CALM], every)
    (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert event.pop("time")
    assert event == {
        "event": "loss spike",
        "step": 9,
        "loss": 7.5,
        "median": 1.0,
        "deviation": pytest.approx(0.1),
    }
    shown = capsys.readouterr().err
    assert shown.startswith("warning: ")
    assert_says(shown, "step 9", "7.5")


def test_a_calm_run_has_no_events_and_other_ranks_never(tmp_path: Path) -> None:
    journal(tmp_path, CALM, 2)
    journal(tmp_path, [*CALM, 7.5], 2, DistEnv(1, 2, 1, 2, torch.device("cpu")))
    Events(tmp_path / "events.jsonl", active=False).write("anything", 3)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "times.jsonl"}
