"""Loggers: the same metrics everywhere, nothing twice when resumed, no run lost for a logger."""

from __future__ import annotations

import csv
import json
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from errors import assert_command_refused, assert_says, refuses
from quadriga import loggers as logger_set
from quadriga.cli.entry import run
from quadriga.config.base import kinds
from quadriga.contracts import Logger, LoggerConfig, LoggerContext
from quadriga.loggers import LoggerSet, check_loggers
from quadriga.loggers.csv import CSVConfig
from quadriga.loggers.mlflow import MLflowConfig
from quadriga.loggers.wandb import WandbConfig
from tiny import read_metrics, tiny_run

TREE = {"name": "run", "optim": {"lr": 0.1}}


def context(folder: Path, start: int = 0) -> LoggerContext:
    return LoggerContext(folder, "run", TREE, start)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_kind_round_trips_and_the_list_takes_names() -> None:
    from quadriga.engine.run_config import LogConfig

    assert kinds(LoggerConfig) == ["csv", "mlflow", "mmengine", "tensorboard", "wandb"]
    for kind in kinds(LoggerConfig):
        config = LoggerConfig.from_dict({"kind": kind})
        assert LoggerConfig.from_dict(config.as_dict()) == config
    changed = LogConfig().override({"loggers": "csv,wandb", "every_steps": 3})
    assert [logger.kind() for logger in changed.loggers] == ["csv", "wandb"]
    changed = changed.override({"loggers.1.mode": "offline"})
    assert changed.loggers[1] == WandbConfig(mode="offline")
    with refuses("loggers.0.kind", "'cvs'", "csv"):
        LogConfig().override({"loggers": "cvs"})


def test_the_table_grows_columns(tmp_path: Path) -> None:
    logger = CSVConfig().open(context(tmp_path))
    logger.log({"loss": 0.1, "lr": 1e-3}, 1)
    logger.log({"lr": 1e-4, "accuracy": 0.5, "loss": 1 / 3}, 2)
    logger.log({"loss": 2.0}, 3)
    logger.close()
    assert table(tmp_path) == [
        {"step": "1", "loss": "0.1", "lr": "0.001", "accuracy": ""},
        {"step": "2", "loss": repr(1 / 3), "lr": "0.0001", "accuracy": "0.5"},
        {"step": "3", "loss": "2.0", "lr": "", "accuracy": ""},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_what_is_found_of_a_step_joins_its_row(tmp_path: Path) -> None:
    logger = CSVConfig().open(context(tmp_path))
    logger.log({"loss": 0.5}, 1)
    logger.log({"loss": 0.25}, 2)
    logger.log({"knn.top1": 90.0}, 2)
    logger.log({"loss": 0.125}, 3)
    logger.close()
    logger = CSVConfig().open(context(tmp_path, start=3))
    logger.log({"knn.top1": 95.0}, 3)
    logger.close()
    assert [list(row.values()) for row in table(tmp_path)] == [
        ["1", "0.5", ""],
        ["2", "0.25", "90.0"],
        ["3", "0.125", "95.0"],
    ]


def test_the_table_is_rewound_and_a_torn_line_dropped(tmp_path: Path) -> None:
    logger = CSVConfig().open(context(tmp_path))
    for step in range(1, 5):
        logger.log({"loss": step / 8}, step)
    logger.close()
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write("2,0.2")  # a whole row at first sight, but its line has no end
    logger = CSVConfig().open(context(tmp_path, start=2))
    logger.log({"loss": 9.0}, 3)
    logger.close()
    assert [(row["step"], row["loss"]) for row in table(tmp_path)] == [
        ("1", "0.125"),
        ("2", "0.25"),
        ("3", "9.0"),
    ]


def test_a_resumed_run_has_the_table_of_one_that_never_stopped(tmp_path: Path) -> None:
    words = ["checkpoint.every_steps=2", "log.loggers=csv", "loader.workers=0"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert run(tiny_run(straight, 4, *words)) == 0
    assert run(tiny_run(resumed, 4, *words)) == 0
    newest = resumed / "checkpoints" / "step_00000004"
    newest.rename(tmp_path / "aside")
    assert run(tiny_run(resumed, 4, *words, "--resume")) == 0
    names = ("step", "loss", "grad_norm", "lr")
    expected = [{name: str(r[name]) for name in names} for r in read_metrics(straight)]
    for folder in (straight, resumed):
        assert [{name: row[name] for name in names} for row in table(folder)] == expected


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_missing_package_is_told_before_anything_is_written(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger_set, "find_spec", lambda name: None)
    words = tiny_run(tmp_path / "run", 1, f"log.loggers=csv,{kind}")
    assert_command_refused(words, capsys, "log.loggers.1", kind, f"pip install 'quadriga[{kind}]'")
    assert not (tmp_path / "run").exists()


class Fake(Logger):
    """Writes down what it is told, and fails from the call it is told to fail at."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls: list[Any] = []
        self.fails_at = fails_at

    def log(self, record: Any, step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("no route to host\nlong trace")
        self.calls.append((step, dict(record)))

    def close(self) -> None:
        self.calls.append("closed")


class Slow(Fake):
    remote = True

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__(fails_at)
        self.go = threading.Event()

    def log(self, record: Any, step: int) -> None:
        assert self.go.wait(30)
        super().log(record, step)


def opened(loggers: list[Logger], folder: Path) -> tuple[LoggerSet, list[str]]:
    warned: list[str] = []
    together = LoggerSet(warned.append)

    class Config(CSVConfig.__mro__[1]):  # type: ignore[misc]
        number: int

        def open(self, context: LoggerContext) -> Logger:
            return loggers[self.number]

    configs = [Config(number=number) for number in range(len(loggers))]
    together.open(configs, context(folder), warned.append)
    return together, warned


def test_a_logger_that_fails_is_dropped_with_one_warning(tmp_path: Path) -> None:
    good, bad = Fake(), Fake(fails_at=2)
    together, warned = opened([bad, good], tmp_path)
    for step in (1, 2, 3):
        together.log({"loss": step}, step)
    together.close()
    assert bad.calls == [(1, {"loss": 1}), "closed"]
    assert good.calls == [*((step, {"loss": step}) for step in (1, 2, 3)), "closed"]
    (line,) = warned
    assert_says(line, "log.loggers.0", "no route to host", "metrics.jsonl")


def test_training_does_not_wait_for_a_network(tmp_path: Path) -> None:
    slow = Slow()
    together, warned = opened([slow], tmp_path)
    for step in (1, 2, 3):
        together.log({"loss": step}, step)
    assert slow.calls == []
    slow.go.set()
    together.close()
    assert slow.calls == [*((step, {"loss": step}) for step in (1, 2, 3)), "closed"]
    assert warned == []


def test_a_network_that_is_down_is_told_by_the_next_call(tmp_path: Path) -> None:
    slow = Slow(fails_at=1)
    slow.go.set()
    together, warned = opened([slow], tmp_path)
    together.log({"loss": 1}, 1)
    together.close()  # what was raised on the thread is told at the end at the latest
    (line,) = warned
    assert_says(line, "log.loggers.0", "no route to host")


def test_a_network_that_never_answers_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger_set, "WAITING", 2)
    slow = Slow()
    together, warned = opened([slow], tmp_path)
    for step in range(1, 9):
        together.log({"loss": step}, step)
    slow.go.set()
    (line,) = warned
    assert_says(line, "log.loggers.0", "2 records")


def test_a_logger_that_cannot_start_is_an_error_and_closes_the_others(tmp_path: Path) -> None:
    first = Fake()

    class Opens(LoggerConfig):
        def open(self, context: LoggerContext) -> Logger:
            return first

    class Refuses(LoggerConfig):
        def open(self, context: LoggerContext) -> Logger:
            raise ConnectionError("api key not configured")

    together = LoggerSet(pytest.fail)
    with refuses("log.loggers.1", "api key not configured"):
        together.open([Opens(), Refuses()], context(tmp_path), print)
    assert first.calls == ["closed"]
    check_loggers([Opens(), Refuses()])


def fake_wandb(inits: list[dict[str, Any]], logged: list[Any]) -> types.ModuleType:
    class Run:
        id = "abc123"
        offline = False
        url = "https://wandb.invalid/abc123"

        def log(self, record: dict[str, float], step: int) -> None:
            logged.append((step, record))

        def finish(self) -> None:
            logged.append("finished")

    def init(**arguments: Any) -> Run:
        inits.append(arguments)
        return Run()

    module = types.ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    module.Settings = dict  # type: ignore[attr-defined]
    return module


def test_wandb_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inits: list[dict[str, Any]] = []
    logged: list[Any] = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(inits, logged))
    config = WandbConfig(project="p", entity="team", mode="offline")
    for start in (0, 2):
        logger = config.open(context(tmp_path, start))
        logger.log({"loss": 1.0}, start + 1)
        logger.close()
    assert logger.place == "https://wandb.invalid/abc123"
    assert [init["id"] for init in inits] == [None, "abc123"]
    assert logged == [(1, {"loss": 1.0}), "finished", (3, {"loss": 1.0}), "finished"]
    known = {name: inits[0][name] for name in ("project", "entity", "mode", "resume", "config")}
    assert known == {
        "project": "p",
        "entity": "team",
        "mode": "offline",
        "resume": "allow",
        "config": TREE,
    }


def fake_mlflow(calls: list[Any]) -> types.ModuleType:
    class Client:
        def __init__(self, uri: str | None) -> None:
            calls.append(("uri", uri))

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            calls.append(("experiment", name))
            return "7"

        def create_run(self, experiment: str, run_name: str) -> Any:
            calls.append(("run", experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

        def update_run(self, identity: str, status: str) -> None:
            calls.append((status, identity))

        def log_batch(self, identity: str, metrics: Any = (), params: Any = ()) -> None:
            calls.append((identity, [m[0:2] + m[3:] for m in metrics], list(params)))

        def set_terminated(self, identity: str) -> None:
            calls.append(("end", identity))

    module = types.ModuleType("mlflow")
    module.MlflowClient = Client  # type: ignore[attr-defined]
    names = {"Metric": lambda *values: values, "Param": lambda *values: values}
    module.entities = types.SimpleNamespace(**names)  # type: ignore[attr-defined]
    return module


def test_mlflow_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setitem(sys.modules, "mlflow", fake_mlflow(calls))
    config = MLflowConfig(uri="sqlite:///runs.db", experiment="e")
    for start in (0, 2):
        logger = config.open(context(tmp_path, start))
        logger.log({"loss": 1.0}, start + 1)
        logger.close()
    assert calls == [
        ("uri", "sqlite:///runs.db"),
        ("experiment", "e"),
        ("run", "7", "run"),
        ("r1", [], [("name", "run"), ("optim.lr", "0.1")]),
        ("r1", [("loss", 1.0, 1)], []),
        ("end", "r1"),
        ("uri", "sqlite:///runs.db"),
        ("RUNNING", "r1"),
        ("r1", [("loss", 1.0, 3)], []),
        ("end", "r1"),
    ]


def test_a_run_outlives_its_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(self: Any, record: Any, step: int) -> None:
        raise ConnectionError("network is down")

    monkeypatch.setattr("quadriga.loggers.csv.CSV.log", down)
    assert run(tiny_run(tmp_path / "run", 3, "log.loggers=csv")) == 0
    assert len(read_metrics(tmp_path / "run")) == 3
    assert_says((tmp_path / "run" / "log.txt").read_text(), "network is down")
    assert json.loads((tmp_path / "run" / "config.json").read_text())
