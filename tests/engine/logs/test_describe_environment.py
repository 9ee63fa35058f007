"""What is written of a run's environment is that of this machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import quadriga
from quadriga.distributed.environment import SINGLE
from quadriga.engine.logs.environment import (
    PACKAGES,
    cores,
    describe_environment,
    git_revision,
    version_of,
)
from quadriga.engine.meters.devices import device_name


def test_versions() -> None:
    assert version_of("numpy") == np.__version__
    assert version_of("no-such-package-anywhere") is None


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_revision_tells_a_changed_checkout(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert git_revision(tmp_path) is None
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    revision = git("rev-parse", "--short=12", "HEAD")
    assert git_revision(tmp_path) == revision
    (tmp_path / "file").write_text("two")
    assert git_revision(tmp_path) == f"{revision}+"
    assert git_revision(tmp_path / "nowhere") is None


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/quadriga", "train", "x", "data.root=/my images"])
    environment = json.loads(json.dumps(describe_environment(SINGLE)))
    assert environment["command"] == "quadriga train x 'data.root=/my images'"
    assert environment["quadriga"] == quadriga.__version__
    assert environment["python"] == platform.python_version()
    assert environment["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert environment["device"] == "cpu"
    assert environment["device_name"] == device_name(torch.device("cpu")) != ""
    assert environment["world_size"] == 1
    assert environment["cores"] == cores() == len(os.sched_getaffinity(0))
    assert all(environment[package] for package in PACKAGES)
