"""Where ranks of one machine listen, in a network whose host name is no loopback address."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import sockets
from errors import assert_says
from quadriga.verify_resume.children import Progress
from ranks import quadriga
from tiny import tiny_run

TOOL = [sys.executable, sockets.__file__]

pytestmark = pytest.mark.skipif(
    shutil.which("unshare") is None
    or shutil.which("ip") is None
    or subprocess.run([*TOOL, "true"], capture_output=True).returncode == sockets.REFUSED,
    reason="network namespaces (unshare, ip) are not allowed here",
)


@contextlib.contextmanager
def watched(*words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*TOOL, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> tuple[set[str], str]:
    """Return who listened and where, without repetitions, and what was said."""
    out, said = process.communicate(timeout=280)
    assert process.returncode == 0, said
    return set(out.splitlines()), said


ON_LOOPBACK = {"127.0.0.1  rank 0", "127.0.0.1  rank 1"}
"""gloo's sockets; a store would listen on every interface."""


@pytest.mark.parametrize(
    ("ranks", "options", "expected"),
    [
        pytest.param("1", [], set(), marks=pytest.mark.long),
        ("2", [], ON_LOOPBACK),
        pytest.param("2", ["--unresolved"], ON_LOOPBACK, marks=pytest.mark.long),
    ],
)
def test_a_run_listens_on_the_loopback_interface_only(
    ranks: str, options: list[str], expected: set[str], tmp_path: Path
) -> None:
    words = tiny_run(tmp_path / "run", 3, f"train.ranks={ranks}")
    with watched(*options, *quadriga(*words)) as process:
        found, _ = finish(process)
    assert found == expected


@pytest.mark.long
def test_a_restarted_run_listens_on_the_loopback_interface_only(tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    words = tiny_run(work_dir, 24, "train.ranks=2", "checkpoint.every_steps=4")
    progress = Progress(work_dir)
    with watched(*quadriga(*words, "--max-restarts", "1")) as process:
        assert progress.wait(process, 9)  # the checkpoint after step 4 is whole
        ranks = psutil.Process(process.pid).children(recursive=True)
        (last,) = [rank for rank in ranks if rank.environ().get("RANK") == "1"]
        last.send_signal(signal.SIGKILL)
        found, said = finish(process)
    assert_says(said, "restart 1 of 1", "resumed")
    assert found == ON_LOOPBACK


@pytest.mark.long
def test_a_workflow_listens_on_the_loopback_interface_only(tmp_path: Path) -> None:
    words = ["model.width=16", "model.heads=2", "train.batch_size=512", "train.epochs=1"]
    words += ["evaluation.protocols=[]", "evaluation.every_epochs=none", "--only", "meta"]
    run = ["run", "deep_incubation_digits", "--ranks-per-run", "2", *words]
    with watched(*quadriga(*run, "--work-dir", str(tmp_path / "run"))) as process:
        found, _ = finish(process)
    assert found == ON_LOOPBACK
