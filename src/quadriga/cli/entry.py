"""The entry point of the command: set-up before torch is imported, and the report of errors."""

from __future__ import annotations

import io
import itertools
import os
import sys
import time
import traceback
from collections.abc import Sequence

from quadriga.engine.faults.preemption import Preempted
from quadriga.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, INTERRUPTED, UserError
from quadriga.launch.attempts import RESTARTS, end_with_parent, remember, remembered
from quadriga.launch.exit import GRACE_SECONDS, leave

VALUE_OPTIONS = (
    "--work-dir",
    "--config",
    "--recipe",
    "--code",
    "--device",
    "--ranks",
    "--resume-from",
    "--max-restarts",
    "--profile",
    "--slots",
    "--ranks-per-run",
    "--only",
)
"""Options of ``train``, ``finetune`` and ``run`` that take the next word as their value."""


def split_resume(arguments: Sequence[str]) -> list[str]:
    """Turn ``--resume PATH`` into ``--resume-from PATH``; keep a bare ``--resume``.

    The next word is the value of ``--resume`` unless it is an option, an override with an equals
    sign, or the first word after the command (the recipe).
    """
    result: list[str] = []
    words_before = 0
    items = iter(arguments)
    for word in items:
        result.append(word)
        if word in VALUE_OPTIONS:
            result.extend(itertools.islice(items, 1))
        elif word.startswith("--resume="):
            result[-1:] = ["--resume-from", word.partition("=")[2]]
        elif word == "--resume" and words_before >= 2:
            for follower in itertools.islice(items, 1):
                if _can_be_path(follower):
                    result[-1:] = ["--resume-from", follower]
                else:
                    result += split_resume([follower])
        elif _can_be_path(word):
            words_before += 1
    return result


def _can_be_path(word: str) -> bool:
    return bool(word) and not word.startswith("-") and "=" not in word


_BROKEN = ("connection closed by peer", "connection reset by peer", "broken pipe")
_LOST = (
    "another rank has ended, see its own error; the checkpoints are untouched, --resume goes on "
    "from the newest"
)


def main() -> None:
    """Run the command line and exit with its code."""
    end_with_parent(os.environ)
    code = remembered(os.environ)
    if code is None:
        try:
            code = run(sys.argv[1:])
        except Exception:
            traceback.print_exc()
            code = 1
        remember(code, os.environ)
    leave(code)


def run(arguments: list[str]) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit code: 0; 2 for a `UserError`; 75 if a signal stopped the run after it saved; 130
        if interrupted.
    """
    # Otherwise OpenMP's waiting threads spin and starve another rank on the same core. The runtime
    # reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be valid text
            stream.reconfigure(errors="backslashreplace")
    import typer

    from quadriga.cli.main import app

    # Some versions of typer contain their own copy of click: take the exceptions from typer.
    ancestors = typer.BadParameter.__mro__
    usage_error: type[Exception] = next(c for c in ancestors if c.__name__ == "ClickException")

    try:
        code = app(
            args=split_resume(arguments),
            prog_name="quadriga",
            standalone_mode=False,
            obj=tuple(arguments),  # for the ranks that a command may start
        )
    except UserError as error:
        return _report(error)
    except usage_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            return 0  # the help is printed already
        return _report(UserError(_one_line(error)))
    except Preempted as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(stopped, file=sys.stderr, flush=True)
        return EXIT_PREEMPTED
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        # Another rank failed, not this one. Without the word "error", the job prints one
        # "error: ..." line, whether the launcher's signal or the lost connection comes first.
        where = f"[rank {os.environ.get('RANK', '0')}] "
        print(f"{where}stopped: {_LOST}: {_first_line(error)}", file=sys.stderr, flush=True)
        return 1
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # some versions of typer turn the interrupt into a code themselves
        hint = "; run the same command with --resume to continue" if arguments[0] == "train" else ""
        # Printed once: by this package's launcher, or by rank 0 under another launcher.
        if "RANK" not in os.environ or (os.environ["RANK"] == "0" and RESTARTS not in os.environ):
            print(f"interrupted{hint}", file=sys.stderr, flush=True)
    return code if isinstance(code, int) else 0


def is_lost_rank(error: BaseException) -> bool:
    """Return whether an error says that another rank's process is gone."""
    text = str(error).lower()
    return "RANK" in os.environ and any(part in text for part in _BROKEN)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].partition(". This is typically")[0]


def _report(error: UserError) -> int:
    rank = os.environ.get("RANK", "0")
    if rank != "0" and error.on_every_rank:
        # torchrun ends the other ranks when one exits, and rank 0 must print the error first.
        time.sleep(GRACE_SECONDS)
    if rank == "0" or not error.on_every_rank:
        where = "" if rank == "0" else f"[rank {rank}] "
        print(f"{where}error: {error}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR


def _one_line(error: BaseException) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    text = " ".join(str(message).split())
    return f"{text[:1].lower()}{text[1:].rstrip('.')}; see quadriga --help"
