"""docs/api.md, followed as a new user would: its files are written, its blocks run in order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from conftest import ROOT
from pictures import noise
from quadriga.engine.checkpoint.store import list_checkpoints
from quadriga.verify_resume.children import end, family_of
from tiny import assert_same_run

BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = BLOCK.findall((ROOT / "docs" / "api.md").read_text())
SECONDS = 280


def blocks(language: str) -> list[str]:
    return [text for kind, file, text in BLOCKS if kind == language and not file]


def words(line: str, *more: str) -> list[str]:
    """Return the words of a command of the page, with the option that it may have beside."""
    program, *rest = shlex.split(line)
    assert program == "quadriga", line
    return [sys.executable, "-P", "-m", "quadriga", *rest, *more]


def do(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kill_after_a_checkpoint(command: list[str], folder: Path, run: Path) -> None:
    """Start a command, and kill it and all that it started after the run's first checkpoint."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + SECONDS
    try:
        while not list_checkpoints(run / "checkpoints"):
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        family = family_of(process.pid)
        process.kill()
        end(family)
    assert process.wait() == -9, "it ended before it was killed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user, with the page's file and some pictures of their own."""
    path = tmp_path_factory.mktemp("user")
    for kind, file, text in BLOCKS:
        if file:
            assert kind == "python"
            (path / file).write_text(text)
    for label, bright in (("dark", 0.3), ("light", 1.0)):
        (path / "photos" / label).mkdir(parents=True)
        for number in range(8):
            pixels = (noise(40, 50, seed=number) * bright).astype("uint8")
            Image.fromarray(pixels).save(path / "photos" / label / f"{number}.png")
    return path


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_page_is_true(folder: Path) -> None:
    first, own = blocks("bash")
    for line in first.splitlines():
        do(words(line), folder)

    train, resume, evaluate = own.splitlines()
    run = folder / "runs" / "rotation_digits"
    kill_after_a_checkpoint(words(train), folder, run)
    do(words(resume), folder)
    do(words(train, "--work-dir", "straight"), folder)
    steps = int(list_checkpoints(run / "checkpoints")[0].name.removeprefix("step_"))
    assert steps == 45  # two epochs of 1437 digits in batches of 64
    assert_same_run(run, folder / "straight", steps)
    assert "top1" in do(words(evaluate), folder)
    assert (run / "files" / "mine.py").read_bytes() == (folder / "mine.py").read_bytes()

    said = do([sys.executable, "-c", "\n".join(blocks("python"))], folder)
    assert re.search(r"^\d+% of the other half are right$", said, re.MULTILINE)
    assert "(1, 64, 96)" in said
    assert "(2, 32)" in said
    assert said.endswith("True\n")


def test_the_encoder_takes_ten_lines() -> None:
    assert sum(map(bool, blocks("python")[0].splitlines())) == 10


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, quadriga; quadriga.__all__; dir(quadriga); print('torch' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert said.stdout == "False\n"
