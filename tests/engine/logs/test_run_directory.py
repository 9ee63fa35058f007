"""Who owns a work directory, and what is in its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import refuses
from parallel_worker import tiny_config
from quadriga.config.provenance import Resolved
from quadriga.engine.logs.directory import RunDirectory

CONFIG = tiny_config([])


def owned(path: Path) -> RunDirectory:
    directory = RunDirectory(path)
    directory.create()
    directory.write_config(Resolved.of(CONFIG, "test"))
    return directory


def test_the_config_comes_back_with_its_sources(tmp_path: Path) -> None:
    resolved = Resolved.of(CONFIG, "test").override({"optim.lr": "0.25"}, "command line")
    directory = RunDirectory(tmp_path)
    directory.write_config(resolved)
    read = directory.read_config()
    assert read.config == resolved.config
    assert read.sources == resolved.sources


@pytest.mark.parametrize("text", ["", '{"config": {', "[]", '{"config": {"name": 3}}'])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with refuses(tmp_path / "config.json", "damaged"):
        RunDirectory(tmp_path).read_config()


def test_there_is_no_run(tmp_path: Path) -> None:
    with refuses(tmp_path / "nowhere", "config.json"):
        RunDirectory(tmp_path / "nowhere").read_config()
    (tmp_path / "config.json").mkdir()
    with refuses(tmp_path / "config.json", "directory"):
        RunDirectory(tmp_path).read_config()


def test_a_directory_without_a_run_is_free(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.check_owner(CONFIG)
    directory.create()
    with directory.lock():
        directory.check_owner(CONFIG)
    # What a run leaves that was stopped before it wrote its config.
    for name in ("log.txt", ".config.json.partial"):
        (directory.path / name).write_text("x")
    directory.check_owner(CONFIG)
    (directory.path / "thesis.tex").write_text("x")
    with refuses(directory.path, "--work-dir"):
        directory.check_owner(CONFIG)


@pytest.mark.parametrize(
    "words",
    [
        {"loader.workers": 3},
        {"log.every_steps": 7},
        {"train.accumulate": 2},
        {"checkpoint.keep": 9},
        {"evaluation.train_samples": 5},
        {"name": "other"},
    ],
)
def test_what_changes_no_number_keeps_the_run(tmp_path: Path, words: dict[str, object]) -> None:
    owned(tmp_path).check_owner(CONFIG.override(words))


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ({"seed": 5}, ("seed is 0", "5")),
        ({"optim.lr": 5}, ("optim.lr is", "5.0")),
        ({"seed": 5, "optim.lr": 5}, ("optim.lr is", "1 more")),
    ],
)
def test_what_changes_a_number_makes_another_run(
    tmp_path: Path, words: dict[str, object], fragments: tuple[object, ...]
) -> None:
    with refuses(tmp_path, "--work-dir", *fragments):
        owned(tmp_path).check_owner(CONFIG.override(words))


def test_a_lock_is_held_until_its_file_is_closed(tmp_path: Path) -> None:
    directory = owned(tmp_path)
    with directory.lock(), refuses(tmp_path, "in use", "--work-dir"):
        directory.lock()
    directory.lock().close()


def test_a_killed_process_leaves_no_lock_to_those_it_forked(tmp_path: Path) -> None:
    """A process that reads data may be stuck in a read when its parent is killed."""
    code = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from quadriga.engine.logs.directory import RunDirectory\n"
        "lock = RunDirectory(Path(sys.argv[1])).lock()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "time.sleep(1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    directory = owned(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert parent.wait(60) == -signal.SIGKILL
            directory.lock().close()
        finally:
            os.kill(child, signal.SIGKILL)


def test_what_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    directory = RunDirectory(tmp_path / "file")
    for write in (directory.create, directory.lock, lambda: directory.write_environment({})):
        with refuses(tmp_path / "file", "--work-dir"):
            write()


def test_environment(tmp_path: Path) -> None:
    owned(tmp_path).write_environment({"cores": 2})
    assert json.loads((tmp_path / "environment.json").read_text()) == {"cores": 2}


@given(
    steps=st.lists(st.integers(1, 20), unique=True, max_size=8).map(sorted),
    cut=st.integers(0, 22),
    torn=st.integers(0, 30),
)
def test_rewound_metrics_are_those_up_to_the_step(steps: list[int], cut: int, torn: int) -> None:
    lines = [json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in steps]
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder))
        # The last line is torn, as by a kill: whatever is left of it does not count.
        last = json.dumps({"step": 21, "loss": 0.5})[:torn][:-1]
        directory.metrics.write_text("".join(lines) + last)
        directory.rewind_metrics(cut)
        kept = [line for step, line in zip(steps, lines, strict=True) if step <= cut]
        assert directory.metrics.read_text() == "".join(kept)


def test_bytes_that_a_power_cut_left_are_dropped(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.metrics.write_bytes(b'{"step": 1}\n\xff\x00\x00{"step": 2')
    directory.rewind_metrics(5)
    assert directory.metrics.read_text() == '{"step": 1}\n'


def test_rewinding_nothing_makes_no_file(tmp_path: Path) -> None:
    RunDirectory(tmp_path).rewind_metrics(3)
    assert not (tmp_path / "metrics.jsonl").exists()
