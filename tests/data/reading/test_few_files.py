"""A command that may open few files trains, or says so at once."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from errors import assert_refused
from ranks import quadriga
from tiny import tiny_run


@pytest.mark.parametrize(("files", "code"), [(16, 2), pytest.param(60, 0, marks=pytest.mark.long)])
def test_a_command_with_few_open_files_trains_or_says_so(
    tmp_path: Path, files: int, code: int
) -> None:
    limits = files, files
    done = subprocess.run(
        quadriga(*tiny_run(tmp_path / "run", 2, "loader.workers=2")),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
    )
    assert done.returncode == code, done.stderr
    if code:
        assert_refused(done, "ulimit -n", str(files), "loader.workers")
