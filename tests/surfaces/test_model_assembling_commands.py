"""The documented model-assembling commands, run small."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from assembling_files import FT, MT, PT, TRAIN, commands, make_images, small

from quadriga.cli.model_assembling import in_flags, read_command, read_words, train
from quadriga.distributed.environment import SINGLE
from quadriga.engine.console import Console
from quadriga.engine.preemption import Preempted
from quadriga.engine.session import run
from quadriga.engine.start import Request
from quadriga.errors import UserError
from quadriga.models.weights.files import read_weights
from quadriga.models.weights.modular_stages import own_names
from tiny import assert_bit_equal, read_checkpoint, read_metrics

SURFACE = Path(__file__).resolve().parents[2] / "surfaces" / "model_assembling"
ONE_EPOCH = ("--batch_size", "4", "--epochs", "1", "--warmup-epochs", "0")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def chain(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every documented command has been run, in order."""
    folder = tmp_path_factory.mktemp("chain")
    here = Path.cwd()
    os.chdir(folder)
    try:
        for script in (PT, MT, FT):
            for words in commands(script, folder):
                assert train([*words, *small(images, *ONE_EPOCH)], {}) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def there(chain: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(chain)
    return chain


def objective_of(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    stored = read_checkpoint(run_dir, step)
    before = "objective."
    return {n.removeprefix(before): t for n, t in stored.items() if n.startswith(before)}


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return own_names(read_weights(path).tensors, str(path))


def test_the_chain_is_the_engines_own(there: Path, images: Path, tmp_path: Path) -> None:
    """The same runs, each starting from the runs before and not from the files they left."""
    folders = {}
    for script, phase in ((PT, "PT"), (MT, "MT"), (FT, "FT")):
        for number, words in enumerate(commands(script, there)):
            flags = read_words([*words, *small(images, *ONE_EPOCH)], {})
            resolved = read_command(flags, {}).resolved
            own: dict[str, object] = {"checkpoint.modular_files": None}
            if phase == "MT":
                own["modular.meta"] = str(folders["PT_0"])
            if phase == "FT":
                own["modular.modules"] = [str(folders[f"MT_{i}"]) for i in (2, 0, 3, 1)]
            folders[f"{phase}_{number}"] = tmp_path / f"{phase}_{number}"
            request = Request(tmp_path / f"{phase}_{number}")
            run(resolved.override(own, "test"), request, SINGLE, Console(False))
    # Micro-batches of 4, of which an update has 1, 2 and 4.
    for name, theirs, step in (("PT_0", "PT_tiny", 6), ("MT_2", "MT_tiny_2", 3), ("FT_0", "FT_tiny", 1)):
        assert_bit_equal(
            objective_of(folders[name], step), objective_of(there / "log_dir" / theirs / "run", step)
        )
    assert_bit_equal(
        weights_of(there / "log_dir" / "FT_tiny" / "finished_checkpoint.pth"),
        objective_of(folders["FT_0"], 1),
    )
