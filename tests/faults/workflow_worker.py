"""Kill a tiny workflow again and again, and finish it.

    python workflow_worker.py FOLDER

Everything is a fork of this process, which has imported torch once. Makes the workflow twice:
undisturbed, one node at a time; and killed, two at a time. Prints what was found.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from quadriga.engine.status import state_of
from quadriga.verify_resume.children import Progress
from workflows import Forked, diamond, fork, known, run

PATIENCE_SECONDS = 30.0


def wait(until: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not until():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.002)


def ended(pid: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def begun(folder: Path, slots: int = 2) -> int:
    return fork(lambda: run(folder, Forked(slots)))


def pid_of(node: Path) -> int:
    return int((node.parent / "workflow" / f"{node.name}.pid").read_text())


def main(folder: Path) -> None:
    known(lambda: diamond(steps=24))
    found: dict[str, object] = {}
    found["undisturbed"] = ended(begun(folder / "alone", slots=1))

    killed = folder / "killed"
    progress = Progress(killed / "first")
    runner = begun(killed)
    wait(lambda: progress.reached(7), "step 7 of first")
    os.kill(runner, signal.SIGKILL)
    found["runner killed"] = ended(runner)
    wait(lambda: state_of(killed / "first", None).state == "stopped", "the end of the orphan")

    progress = Progress(killed / "left")
    runner = begun(killed)
    wait(lambda: progress.reached(11), "step 11 of left")
    os.kill(pid_of(killed / "left"), signal.SIGKILL)
    found["child killed"] = ended(runner)
    states = {name: state_of(killed / name, None) for name in ("left", "right", "last")}
    found["after that"] = {name: [s.state, s.error] for name, s in states.items()}

    progress = Progress(killed / "last")
    runner = begun(killed)
    wait(lambda: progress.reached(5), "step 5 of last")
    os.kill(runner, signal.SIGTERM)
    found["runner asked to stop"] = ended(runner)
    found["at the end"] = state_of(killed / "last", None).state
    found["finished"] = ended(begun(killed))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
