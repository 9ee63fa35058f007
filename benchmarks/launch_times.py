"""How long commands take to start, as multiples of ``python -c 'import torch'``.

    python benchmarks/launch_times.py [--source TREE ...] [--runs 7]

Every round times each command of each tree once, and the import of torch just before it, so that
what else the machine does meets both alike; the table has the medians. A training run counts
until its first logged step. TREE is a checkout of this project; by default the one of this file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
QUADRIGA = [sys.executable, "-m", "quadriga"]
TRAIN = ["train", "mae_digits", "train.steps=2", "log.every_steps=1", "evaluation.protocols=[]"]
COMMANDS = {
    "first step, 1 rank": [*TRAIN, "--ranks", "1"],
    "first step, 2 ranks": [*TRAIN, "--ranks", "2"],
    "recipes": ["recipes"],
    "a misspelt recipe": ["train", "mae_digit"],
    "--print-config": ["train", "mae_digits", "--print-config"],
}
GOALS = dict(zip(COMMANDS, (2.0, 3.0, 0.5, 0.5, 1.0), strict=True))


def main() -> None:
    """Time all commands of all trees and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", nargs="+", type=Path, default=[HERE])
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    imports = []
    for _ in range(given.runs):
        for source in given.source:
            for name, words in COMMANDS.items():
                began = time.perf_counter()
                subprocess.run([sys.executable, "-c", "import torch"], check=True)
                imports.append(time.perf_counter() - began)
                taken = time_command(source.resolve(), words)
                seconds[str(source), name].append(taken)
                ratios[str(source), name].append(taken / imports[-1])
    print(f"import torch: {statistics.median(imports):.2f} s, median of {len(imports)}")
    print("| tree | command | seconds | ratio | goal |\n|---|---|---|---|---|")
    for key, found in ratios.items():
        second, ratio = statistics.median(seconds[key]), statistics.median(found)
        print(f"| {key[0]} | {key[1]} | {second:.2f} | {ratio:.2f} | {GOALS[key[1]]} |")


def time_command(source: Path, words: list[str]) -> float:
    """Return the seconds until a command's end, or until its run has logged a step."""
    environ = {**os.environ, "PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        is_run = words[:4] == TRAIN[:4]
        own = ["--work-dir", str(Path(folder, "run"))] if is_run else []
        began = time.perf_counter()
        process = subprocess.Popen(
            [*QUADRIGA, *words, *own],
            env=environ,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        metrics = Path(folder, "run", "metrics.jsonl")
        while is_run and not (metrics.is_file() and metrics.stat().st_size):
            if process.poll() is not None:
                raise SystemExit(f"{source}: {' '.join(words)} ended with {process.returncode}")
            time.sleep(0.005)
        if not is_run:
            process.wait()
        taken = time.perf_counter() - began
        process.wait()
    return taken


if __name__ == "__main__":
    main()
