"""Nothing of the folder in which one works is run: neither by a command nor by what it starts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quadriga.pipeline.planner.measure import measure_network
from tiny import TINY

NAMES = ("typer", "torch", "numpy", "psutil", "quadriga")
LAUNCH = Path(__file__).parents[2] / "surfaces" / "pipedream_bert" / "launch.py"
SAFE = (sys.executable, "-P", "-m", "quadriga")
"""As the installed command: the current folder is not on its path."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files that stop whoever imports one."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py was run')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert "was run" not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_typed_module_imports_nothing_from_here(here: Path) -> None:
    (here / "quadriga.py").unlink()  # that one python itself would find
    assert "mae_digits" in run(sys.executable, "-m", "quadriga", "recipes")


@pytest.mark.long
def test_the_nodes_of_a_workflow_and_their_ranks_import_nothing_from_here(here: Path) -> None:
    words = ["model.width=16", "model.heads=2", "train.batch_size=512", "train.epochs=1"]
    words += ["evaluation.protocols=[]", "evaluation.every_epochs=none", "--only", "meta"]
    run(*SAFE, "run", "deep_incubation_digits", "--ranks-per-run", "2", *words)
    (console,) = here.glob("runs/*/meta/console.txt")
    assert "was run" not in console.read_text()


@pytest.mark.long
def test_the_runs_of_a_verification_import_nothing_from_here() -> None:
    words = [word for word in TINY if not word.startswith(("train.epochs", "log.", "checkpoint."))]
    words = [w for w in words if not w.startswith(("train.ranks", "evaluation."))]
    run(*SAFE, "verify-resume", "mae_digits", *words, "--steps", "4", "--kills", "0", "--ranks=1")


def test_the_processes_of_a_server_import_nothing_from_here(here: Path) -> None:
    shutil.copy(LAUNCH, here)
    (here / "script.py").write_text("import typer\nprint(typer.__file__, flush=True)")
    said = run(sys.executable, "-m", "launch", "script.py")
    assert str(here) not in said
    assert "typer" in said


@pytest.mark.long
def test_the_processes_that_measure_a_network_import_nothing_from_here() -> None:
    assert measure_network(torch.device("cpu")).within.bandwidth > 0
