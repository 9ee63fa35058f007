"""A run that does not fit the memory of its process says so in one line."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from errors import assert_refused
from ranks import quadriga
from tiny import tiny_run

LIMIT = 1100 << 20
"""Bytes of data: enough for the interpreter and torch, and not for the model's four copies."""


@pytest.mark.long
def test_weights_and_moments_beyond_the_limit_are_named(tmp_path: Path) -> None:
    words = tiny_run(tmp_path / "run", 2, "model.width=768", "model.depth=12", "model.heads=12")
    done = subprocess.run(
        quadriga(*words),
        capture_output=True,
        text=True,
        timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
    )
    assert_refused(done, "memory", "train.parallel=fsdp")
