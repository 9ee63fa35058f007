"""Most memory that each rank's process holds: one rank with everything, several with shards.

    python benchmarks/sharded_memory.py [--ranks 1 4] [--source TREE ...] [key=value ...]

Trains a ViT-B of 85 M parameters for two steps on the CPU, saves and evaluates it. *state* is
weights, gradients and two moments; *peak* is the most private data (VmData, what RLIMIT_DATA
bounds) of any rank, read every 5 ms; *before* is that of the process before the model is built.
Each source tree, by default this one, is a row for each number of ranks.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

PARAMETERS = 85_100_000
WORDS = (
    "model.width=768 model.depth=12 model.heads=12 objective.decoder_width=32 "
    "objective.decoder_depth=1 objective.decoder_heads=2 train.batch_size=8 train.epochs=none "
    "train.steps=2 schedule.warmup_epochs=0 train.device=cpu train.parallel=fsdp "
    "evaluation.train_samples=64 evaluation.test_samples=32 log.loggers=[] loader.workers=0 "
    "evaluation.workers=0"
).split()
WATCHED = """
import atexit, os, sys, threading, time
def now():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmData"))
import torch
before, peak = now(), 0
def watch():
    global peak
    while True:
        peak = max(peak, now())
        time.sleep(0.005)
def say():
    print("PEAK", before, peak, flush=True)
leave = os._exit
def tell_and_leave(code):
    say()
    leave(code)
os._exit = tell_and_leave
atexit.register(say)
threading.Thread(target=watch, daemon=True).start()
import runpy
runpy.run_module("quadriga", run_name="__main__", alter_sys=True)
"""


def main() -> None:
    """Read the command line, run every tree with every number of ranks, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--source", type=Path, nargs="+", default=[Path(__file__).parents[1]])
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args()
    mebi = 1 << 20
    print(f"{'tree':24} {'ranks':>5} {'state MiB a rank':>17} {'before MiB':>11} {'peak MiB':>9}")
    for ranks in options.ranks:
        for source in options.source:
            before, peak = run(source.resolve(), ranks, options.overrides)
            state = 16 * PARAMETERS / ranks / mebi
            row = f"{ranks:5} {state:17.0f} {before / 1024:11.0f} {peak / 1024:9.0f}"
            print(f"{source.resolve().name:24} {row}", flush=True)


def run(source: Path, ranks: int, overrides: list[str]) -> tuple[int, int]:
    """Return the KiB of data of a process before the model and at most, of the worst rank."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        words = ["train", "mae_digits", *WORDS, *overrides, "--work-dir", f"{folder}/run"]
        common = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | {
            "PYTHONPATH": str(source / "src"),
            "OMP_NUM_THREADS": "1",
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        running = [
            subprocess.Popen(
                [sys.executable, "-c", WATCHED, *words],
                env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        said = [process.communicate(timeout=600)[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit(f"{source} with {ranks} ranks failed")
    marks = [line.split()[1:] for text in said for line in text.splitlines() if "PEAK" in line]
    return max(int(mark[0]) for mark in marks), max(int(mark[1]) for mark in marks)


if __name__ == "__main__":
    main()
