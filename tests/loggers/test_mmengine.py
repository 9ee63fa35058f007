"""The log files in mmengine's form."""

from __future__ import annotations

import json
from pathlib import Path

from errors import assert_says
from quadriga.contracts.logging import LoggerContext
from quadriga.loggers.mmengine import MMEngineConfig

RECORD = {
    **{"loss": 0.5, "lr": 0.1, "step_seconds": 2.0, "data_wait_share": 0.25},
    **{"memory_gib": 0.5, "eta_seconds": 61.0},
}


def test_lines_count_iterations_of_an_epoch(tmp_path: Path) -> None:
    """Of three steps of two iterations each; what is no training step has no line."""
    config = MMEngineConfig(
        folder=tmp_path / "log", epoch_steps=3, total_steps=6, accumulate=2, text="a = 1\n"
    )
    logger = config.open(LoggerContext(tmp_path, "run", {}, 0))
    logger.log(RECORD, 4)
    logger.log({"knn.top1": 1.0}, 4)
    logger.close()
    (line,) = (tmp_path / "log" / "log.log").read_text().splitlines()
    assert_says(line, "Epoch(train) [2][2/6]", "eta: 0:01:01", "time: 1.0000", "memory: 512")
    for name in ("log", "scalars"):
        text = (tmp_path / "log" / "vis_data" / f"{name}.json").read_text()
        assert json.loads(text) == {
            **{"lr": 0.1, "data_time": 0.25, "loss": 0.5, "time": 1.0, "epoch": 2, "iter": 8},
            **{"memory": 512, "step": 8},
        }
    assert (tmp_path / "run.py").read_text() == "a = 1\n"


def test_without_epochs_a_line_has_iterations_alone(tmp_path: Path) -> None:
    logger = MMEngineConfig().open(LoggerContext(tmp_path, "run", {}, 0))
    logger.log(RECORD, 4)
    logger.close()
    (path,) = tmp_path.glob("*/*.log")
    assert_says(path.read_text(), "Iter(train) [4]")
