"""Golden runs: ten short runs whose parameters, optimizer state and metrics a move must not change.

    python tools/golden.py record FILE [--source DIR] [--only NAME]... [--keep DIR] [--jobs CORES]
    python tools/golden.py compare FILE    (the same options)

`record` runs the ``quadriga`` command of a checkout and writes hashes to FILE, and the tensors of
each run's last checkpoint beside it; with --only it replaces those runs in FILE and leaves the
others. `compare` runs again, prints for each run what is the same and what differs first and by
how much, and exits with 1 if anything differs. Nothing of the package is imported: a run is
compared by its checkpoint and its metrics.jsonl, so that any revision can be the source:

    git worktree add /tmp/base REVISION
    python tools/golden.py record /tmp/golden.json --source /tmp/base
    python tools/golden.py compare /tmp/golden.json

THE HASHES ARE THOSE OF ONE MACHINE: another processor, PyTorch or number of threads rounds
otherwise, and the text of the BERT runs is that of the running Python. Record and compare on the
same machine with the same environment. Every run computes with one thread; the text cache is new
each time. Optimizer state is everything that a checkpoint holds beside parameters and their moving
average: moments, 2BW's previous weights, counts. Tensors of zeros that a checkpoint leaves out are
not among it. Of the metrics, what depends on the clock or on memory is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from golden_cases import CASES, Case, spellings, write_glue
from golden_parts import PARTS, compare_runs, summary, table

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_SECONDS = 300


class Failed(Exception):
    """A run that ended with an error."""


def read_tensors(run: Path) -> dict[str, Tensor]:
    """Return every tensor of a run's last checkpoint, whole, whatever layout saved it.

    Raises:
        Failed: There is none.
    """
    whole = sorted((run / "checkpoints").glob("step_*/manifest.json"))
    if not whole:
        raise Failed("it left no whole checkpoint")
    folder = whole[-1].parent
    reader = HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    tensors = {n: torch.empty(s.size, dtype=s.properties.dtype) for n, s in stored.items()}  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a command wrote, its errors first."""
    text = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
    return text.splitlines()[-1]


@dataclass(frozen=True)
class Runner:
    """Runs cases of one checkout below one folder."""

    source: Path
    """A checkout; its ``src`` is run."""
    folder: Path
    """Each case has a folder of its name in it, with its runs' work directories."""

    def quadriga(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command with one thread and a text cache of this comparison's own."""
        environ = {
            **os.environ,
            "PYTHONPATH": str(self.source / "src"),
            "OMP_NUM_THREADS": "1",
            "QUADRIGA_CACHE": str(self.folder / "cache"),
        }
        return subprocess.run(
            [sys.executable, "-m", "quadriga", *words],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )

    def spell(self, folder: Path, case: Case) -> list[str]:
        """Return the case's overrides as the source spells them.

        Raises:
            Failed: It knows none of the spellings.
        """
        ways = list(spellings(case.words))
        if len(ways) == 1:
            return ways[0]
        said = ""
        for words in ways:
            done = self.quadriga(folder, "train", case.recipe, *words, "--print-config")
            if done.returncode == 0:
                return words
            said = said or last_line(done)
        raise Failed(f"no spelling is known: {said}")

    def train(self, folder: Path, work_dir: str, *words: str) -> None:
        """Train in a work directory.

        Raises:
            Failed: The command did.
        """
        done = self.quadriga(folder, "train", *words, "--work-dir", work_dir)
        if done.returncode:
            raise Failed(last_line(done))

    def run(self, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Run a case and return its summary and its last checkpoint's tensors.

        Raises:
            Failed: It ended with an error, or did not end.
        """
        case, folder = CASES[name], self.folder / name
        folder.mkdir()
        if case.recipe.startswith("glue"):
            write_glue(folder / "glue")
        try:
            if case.before:
                self.train(folder, "meta", case.recipe, *case.before)
            words = self.spell(folder, case)
            self.train(folder, "run", case.recipe, *words, "--ranks", str(case.ranks))
        except subprocess.TimeoutExpired as error:
            raise Failed(f"did not end within {TIMEOUT_SECONDS} s") from error
        tensors = read_tensors(folder / "run")
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        steps = [line for line in map(json.loads, lines) if "lr" in line]  # others: evaluations
        return summary(tensors, steps), tensors

    def run_all(
        self, names: Sequence[str], cores: int
    ) -> Iterator[tuple[str, tuple[dict[str, Any], dict[str, Tensor]] | Failed]]:
        """Run cases, as many ranks at once as cores, and yield each with its end as it comes."""
        began, count = time.perf_counter(), itertools.count(1)
        for ranks in sorted({CASES[name].ranks for name in names}):
            chosen = [name for name in names if CASES[name].ranks == ranks]
            with ThreadPoolExecutor(max(1, cores // ranks)) as pool:
                futures = {pool.submit(self.run, name): name for name in chosen}
                for future in as_completed(futures):
                    name, error = futures[future], future.exception()
                    if error is not None and not isinstance(error, Failed):
                        raise error
                    end = f"failed: {error}" if error else "done"
                    seconds = time.perf_counter() - began
                    line = f"[{next(count)}/{len(names)}] {name} {end} ({seconds:.0f} s)"
                    print(line, file=sys.stderr, flush=True)
                    yield name, error or future.result()


def about() -> dict[str, str]:
    """Return what the hashes hang on beside the source."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def revision(source: Path) -> str:
    """Return the commit of a checkout, marked where its tracked files are changed."""
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def side_file(path: Path, name: str) -> Path:
    """Return where the tensors of a run are kept."""
    return path.with_suffix(f".{name}.safetensors")


def record(path: Path, names: Sequence[str], runner: Runner, cores: int, anew: bool) -> int:
    """Run and write down; return the exit code: 1 if a run failed."""
    runs = {} if anew or not path.exists() else json.loads(path.read_text())["runs"]
    path.parent.mkdir(parents=True, exist_ok=True)
    commit, failed = revision(runner.source), 0
    for name, end in runner.run_all(names, cores):
        if isinstance(end, Failed):
            failed += 1
            continue
        runs[name] = {"revision": commit, "about": about(), **end[0]}
        save_file(end[1], side_file(path, name))
    ordered = {name: runs[name] for name in CASES if name in runs}
    path.write_text(json.dumps({"runs": ordered}, indent=1) + "\n")
    hashes = ((n, *(ordered[n][part]["sha256"][:16] for part in PARTS)) for n in ordered)
    print(table([("run", *PARTS), *hashes]))
    print(f"{path}: {len(names) - failed} of {len(names)} runs recorded of {commit}")
    return 1 if failed else 0


def compare(path: Path, names: Sequence[str], runner: Runner, cores: int) -> int:
    """Run again and print what differs; return the exit code: 1 if anything does."""
    runs = json.loads(path.read_text())["runs"]
    commit, rows = revision(runner.source), {}
    for name, end in runner.run_all(names, cores):
        if name not in runs:
            rows[name] = ["not recorded"] * len(PARTS)
        elif isinstance(end, Failed):
            rows[name] = ["failed"] * len(PARTS)
        else:
            kept = side_file(path, name)
            old = load_file(kept) if kept.exists() else {}
            rows[name] = compare_runs(runs[name], end[0], old, end[1])
    print(table([("run", *PARTS), *((name, *rows[name]) for name in names)]))
    recorded = sorted({runs[name]["revision"] for name in names if name in runs})
    print(f"recorded of {', '.join(recorded)}, compared with {commit}")
    if any(runs[name]["about"] != about() for name in names if name in runs):
        print("recorded with another Python, PyTorch or processor: differences may come from that")
    return 0 if all(cell == "same" for row in rows.values() for cell in row) else 1


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line and do what it says; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=("record", "compare"))
    parser.add_argument("file", type=Path, help="JSON; the tensors are kept beside it")
    parser.add_argument("--source", type=Path, default=ROOT, help="the checkout that is run")
    parser.add_argument("--only", action="append", choices=CASES, help="these runs (repeatable)")
    parser.add_argument("--keep", type=Path, help="a new folder in which the runs stay")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compute at once")
    asked = parser.parse_args(words)
    if not (asked.source / "src" / "quadriga").is_dir():
        parser.error(f"--source must be a checkout with src/quadriga, but is {asked.source}")
    if asked.command == "compare" and not asked.file.is_file():
        parser.error(f"{asked.file} does not exist; record it first")
    names = [name for name in CASES if not asked.only or name in asked.only]
    with tempfile.TemporaryDirectory() as scratch:
        if asked.keep:
            asked.keep.mkdir(parents=True)
        runner = Runner(asked.source.resolve(), (asked.keep or Path(scratch)).resolve())
        if asked.command == "record":
            return record(asked.file, names, runner, asked.jobs, anew=not asked.only)
        return compare(asked.file, names, runner, asked.jobs)


if __name__ == "__main__":
    sys.exit(main())
