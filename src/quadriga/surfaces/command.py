"""Shared parts of the documented commands: the parser, and errors that name their flags."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

from quadriga.engine.faults.preemption import Preempted
from quadriga.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, INTERRUPTED, UserError, nearest
from quadriga.launch.attempts import end_with_parent
from quadriga.launch.exit import GRACE_SECONDS, leave


def translate_message(sentence: str, flag_of: Mapping[str, str]) -> str:
    """Return a message with config keys and ``quadriga`` options replaced by a command's flags.

    Args:
        sentence: A message of the engine.
        flag_of: Config key or option -> flag of the documented command.
    """
    names = "|".join(re.escape(name) for name in flag_of if name != "seed")
    said = re.sub(rf"(?<![\w.-])({names})(?![\w.])", lambda found: flag_of[found[1]], sentence)
    said = said.replace(" (set on the command line)", "")
    said = re.sub(r"^seed must", "--seed must", said)
    said = said.replace("add --resume to continue it or", "run the same command to continue it or")
    return re.sub(r"(?:the same command )?with --resume", "the same command", said)


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError` instead of exiting."""

    def __init__(self, program: str, about: str, examples: str) -> None:
        """Make a parser for `program`, the name as typed; `examples` end its help."""
        super().__init__(
            prog=program,
            description=about,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as a `UserError`."""
        said = " ".join(message.split())
        unknown = re.match(r"unrecognized arguments: (?:.*? )??(--[^\s=]+)", said)
        if unknown is not None:
            name = unknown[1]
            near = nearest(name, self._option_string_actions)
            said = f"unknown flag {name}" + (f"; did you mean {near}?" if near else "")
        for kind, name in (("int", "an integer"), ("float", "a number")):
            said = re.sub(
                rf"argument (?:\S+/)?(\S+): invalid {kind} value: (.*)",
                rf"\1 must be {name}, but is \2",
                said,
            )
        raise UserError(f"{said}; see {self.prog} --help")


def run_command(command: Callable[[], int], in_flags: Callable[[str], str]) -> NoReturn:
    """Run a command and exit with its code; errors are printed in one line.

    Args:
        command: Returns the exit code.
        in_flags: Translates a message of the engine to the flags of the command.
    """
    end_with_parent(os.environ)
    # Otherwise OpenMP's waiting threads spin and starve another rank on the same core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = command()
    except UserError as error:
        code = report(error, os.environ, in_flags)
    except Preempted as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(in_flags(str(stopped)), file=sys.stderr, flush=True)
        code = EXIT_PREEMPTED
    except KeyboardInterrupt:
        code = INTERRUPTED
        if os.environ.get("RANK", "0") == "0":
            print("interrupted; run the same command to continue", file=sys.stderr, flush=True)
    leave(code)


def report(error: UserError, environ: Mapping[str, str], in_flags: Callable[[str], str]) -> int:
    """Print an error, on rank 0 alone if all ranks raise it; return the exit code."""
    rank = environ.get("RANK", "0")
    if rank != "0" and error.on_every_rank:
        time.sleep(GRACE_SECONDS)  # the launcher ends the others once one has left
    if rank == "0" or not error.on_every_rank:
        where = "" if rank == "0" else f"[rank {rank}] "
        print(f"{where}error: {in_flags(str(error))}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR
