"""A workflow killed three times and finished, beside an undisturbed one: the same files?

    python benchmarks/workflow_kills.py [--work-dir runs/workflow_kills] [--seed 0] [key=value ...]

Makes a short ``deep_incubation_digits`` once undisturbed, two runs at a time. Then again, killed
with SIGKILL at three random moments: the command, one node's process, the command once more; and
finished one run at a time. Every tensor of every node's last checkpoint is compared, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from quadriga.engine.checkpoint.store import list_checkpoints, verify

SHORT = (
    "meta:train.epochs=6",
    "module_*:train.epochs=3",
    "finetune:train.epochs=3",
    "reference:train.epochs=6",
    "checkpoint.every_epochs=1",
    "log.loggers=[]",
)


def main() -> None:
    """Make both, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-dir", type=Path, default=Path("runs/workflow_kills"))
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    calm, killed = given.work_dir / "undisturbed", given.work_dir / "killed"
    for folder in (calm, killed):
        shutil.rmtree(folder, ignore_errors=True)
    # One thread each: the number of threads may change the rounding.
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.monotonic()
    finish(calm, 2, given.overrides)
    length = time.monotonic() - began
    print(f"undisturbed: {length:.0f} s")
    moments = random.Random(given.seed)
    for victim in ("command", "node", "command"):
        kill(killed, victim, moments.uniform(0.2, 0.5) * length, given.overrides)
    finish(killed, 1, given.overrides)
    different = [name for name, same in compare(calm, killed).items() if not same]
    raise SystemExit(1 if different else 0)


def command(folder: Path, slots: int, overrides: list[str]) -> list[str]:
    """Return the command of the workflow."""
    own = [*SHORT, *overrides, "--work-dir", str(folder), "--slots", str(slots)]
    return [sys.executable, "-m", "quadriga", "run", "deep_incubation_digits", *own]


def finish(folder: Path, slots: int, overrides: list[str]) -> None:
    """Make what is left of the workflow."""
    done = subprocess.run(command(folder, slots, overrides), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"the workflow ended with {done.returncode}: {done.stderr}")


def kill(folder: Path, victim: str, seconds: float, overrides: list[str]) -> None:
    """Go on with the workflow and kill the command, or the process of a node."""
    running = subprocess.Popen(
        command(folder, 2, overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(seconds)
    nodes = psutil.Process(running.pid).children() if running.poll() is None else []
    if victim == "node" and nodes:
        nodes[0].send_signal(signal.SIGKILL)
        running.wait()
    else:
        running.kill()
        running.wait()
    psutil.wait_procs(nodes, timeout=30)
    print(f"SIGKILL of the {victim} after {seconds:.0f} s, with {len(nodes)} nodes at work")


def compare(first: Path, second: Path) -> dict[str, bool]:
    """Print and return whether each node's last checkpoint holds the same bits."""
    found = {}
    for run in sorted(path.parent for path in first.glob("*/checkpoints")):
        sides = [max(list_checkpoints(d / run.name / "checkpoints")) for d in (first, second)]
        tables = [digests(path) for path in sides]
        found[run.name] = tables[0] == tables[1]
        word = "the same bits" if found[run.name] else "DIFFERENT"
        print(f"{run.name:<10} {sides[0].name}  {word}")
    return found


def digests(checkpoint: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of tensors of a whole checkpoint."""
    verify(checkpoint)
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(checkpoint.glob("*.safetensors"))
    }


if __name__ == "__main__":
    main()
