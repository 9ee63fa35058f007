"""What is said, where it is said, and that the log holds all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from errors import assert_says
from quadriga.engine.logs.console import Console


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the console believe in a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")


def talk(console: Console) -> None:
    console.say("said [/b] [rank 1]")
    console.line("progress [/x]")
    console.warn("careful [/y]")


def test_off_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        console.open_log(tmp_path / "log.txt")
        talk(console)
    shown = capsys.readouterr()
    assert shown.out == "said [/b] [rank 1]\nprogress [/x]\n"
    assert shown.err == "warning: careful [/y]\n"
    log = (tmp_path / "log.txt").read_text()
    assert log == "said [/b] [rank 1]\nprogress [/x]\nwarning: careful [/y]\n"


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_the_bar_shows_the_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Console() as console:
        console.open_log(tmp_path / "log.txt")
        talk(console)
        console.advance("train", 1, 4, "loss 0.5")
        console.warn("under the bar [/z]")
        console.advance("train", 4, 4, "loss 0.25")
    shown = capsys.readouterr()
    assert "said [/b] [rank 1]" in shown.out
    assert "progress [/x]" not in shown.out
    assert "train" in shown.out
    assert "warning: careful [/y]\n" in shown.err
    assert "under the bar [/z]" in shown.out + shown.err
    lines = ["said [/b] [rank 1]", "progress [/x]", "warning: careful [/y]"]
    assert (tmp_path / "log.txt").read_text().splitlines() == [
        *lines,
        "warning: under the bar [/z]",
    ]


def test_other_ranks_only_warn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Console(active=False) as console:
        console.open_log(tmp_path / "log.txt")
        talk(console)
        console.advance("features", 9, 9)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(line.startswith("warning: ") for line in shown.err.splitlines())
    assert shown.err
    assert not (tmp_path / "log.txt").exists()


def test_a_later_log_continues_an_earlier_one(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with Console() as console:
            console.open_log(tmp_path / "log.txt")
            console.say(text)
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\n"


@pytest.mark.parametrize(("total", "expected"), [(100, 4), (4, 4), (3, 3), (1, 1)])
def test_long_work_is_told_by_quarters(
    total: int, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console()
    for _ in range(2):
        for done in range(1, total + 1):
            console.advance("features", done, total)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == expected
        assert lines[-1] == f"features: {total}/{total}"
    console.advance("train", 1, 1)
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_ends_the_log_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with Console() as console:
        console.open_log(tmp_path / "log.txt")
        console.say("one")
        console.say("two")
    shown = capsys.readouterr()
    assert shown.out == "one\ntwo\n"
    assert shown.err.startswith("warning: ")
    assert_says(shown.err, "log.txt", "No space left on device")


def test_a_reader_that_has_gone_ends_nothing(tmp_path: Path) -> None:
    """``quadriga train ... | head -1``: the pipe is closed after the first line."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from quadriga.engine.logs.console import Console\n"
        "with Console() as console:\n"
        "    console.open_log(Path(sys.argv[1]))\n"
        "    for number in range(3):\n"
        "        console.say(str(number))\n"
        "        sys.stdin.readline()\n"
    )
    log = tmp_path / "log.txt"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        process.stdout = None
        _, told = process.communicate("\n\n\n", timeout=60)
    assert (process.returncode, told) == (0, "")
    assert log.read_text() == "0\n1\n2\n"
