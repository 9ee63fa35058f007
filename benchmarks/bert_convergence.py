"""BERT-mini with 2BW beside the same with a flush after each step, then fine-tuned on GLUE.

    python benchmarks/bert_convergence.py --text FOLDER --glue FOLDER [--work-dir runs/convergence]
        [--steps 2400] [--tasks sst2,cola,rte] [--seeds 3] [--picture FILE.png] [key=value ...]

Both arms see the same samples with the same masks and start from the same weights; they differ in
``executor.schedule`` alone, 2bw against 1f1b, on two stages each. *masked_lm* is the mean over the
last tenth of the steps. Then the 2bw arm's checkpoint is fine-tuned, beside random weights of the
same size, on each task with each seed; GLUE's development sets decide.

Two runs at a time. It can be stopped anywhere and started again: what is finished is not redone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

ARMS = {"2bw": "2bw", "flush": "1f1b"}
PRETRAINING = (
    "views.max_length=64",
    "views.pairing=segments",
    "train.batch_size=16",
    "train.accumulate=2",
    "optim.lr=7e-4",
    "schedule.warmup_steps=200",
    "model.dropout=0",
    "model.attention_dropout=0",
    "executor.kind=pipeline",
    "executor.stages=2",
    "train.ranks=2",
    "loader.workers=0",
    "log.every_steps=10",
    "checkpoint.every_steps=400",
)
FINE_TUNING = ("train.batch_size=32", "optim.lr=3e-4", "loader.workers=0")
LENGTHS = {"sst2": 500, "cola": 300, "rte": 80}
"""Optimizer steps of a task's fine-tuning; what is not here takes its recipe's epochs."""


def main() -> None:
    """Read the command line, make what is missing, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--glue", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/convergence"))
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--tasks", default="sst2,cola,rte")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture", type=Path, default=None)
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args()
    folder: Path = options.work_dir
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    if not vocabulary.exists():
        files = sorted(map(str, options.text.glob("*.txt")))
        learn = ["tokenizer", "train", *files, "--size", str(options.vocabulary)]
        _quadriga([*learn, "--output", str(vocabulary)]).wait()
    size = len(vocabulary.read_text(encoding="utf-8").splitlines())
    words = [
        f"data.root={options.text}",
        f"data.vocabulary={vocabulary}",
        f"model.vocabulary_size={size}",
        f"train.steps={options.steps}",
        *PRETRAINING,
        *options.overrides,
    ]
    together(
        [
            [
                "train",
                "bert_mini",
                *words,
                f"executor.schedule={schedule}",
                "--resume",
                "--work-dir",
                str(folder / arm),
            ]
            for arm, schedule in ARMS.items()
        ]
    )
    curves = {arm: curve(folder / arm) for arm in ARMS}
    report(curves, options.picture or folder / "masked_lm.png")
    fine_tune(folder, options.glue, options.tasks.split(","), options.seeds)


def _quadriga(words: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "quadriga", *words])


def together(commands: Sequence[Sequence[str]]) -> None:
    """Run commands at the same time.

    Raises:
        SystemExit: One of them failed.
    """
    codes = [process.wait() for process in [_quadriga(words) for words in commands]]
    if any(codes):
        raise SystemExit(f"a run failed: exit codes {codes}; start again to go on")


def curve(run: Path) -> tuple[list[int], list[float]]:
    """Return the steps of a run and the masked-LM losses at them."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [r["step"] for r in records], [r["masked_lm_loss"] for r in records]


def report(curves: dict[str, tuple[list[int], list[float]]], picture: Path) -> None:
    """Print the final losses and draw the curves."""
    final = {}
    for arm, (steps, losses) in curves.items():
        last = [v for s, v in zip(steps, losses, strict=True) if s > 0.9 * steps[-1]]
        final[arm] = statistics.mean(last)
    print(f"\n{'arm':<8}{'steps':>8}{'masked_lm':>12}{'to flush':>10}")
    for arm, value in final.items():
        print(f"{arm:<8}{curves[arm][0][-1]:>8}{value:>12.4f}{value / final['flush'] - 1:>+10.2%}")
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for arm, (steps, losses) in curves.items():
        axes.plot(steps, losses, label=f"{arm} ({final[arm]:.3f} at the end)", linewidth=1)
    axes.set(xlabel="optimizer step", ylabel="masked-LM loss (nats per token)")
    axes.set_title("BERT-mini, two stages: PipeDream-2BW and 1F1B with a flush")
    axes.grid(alpha=0.3)
    axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    print(f"curves: {picture}")


def fine_tune(folder: Path, glue: Path, tasks: Sequence[str], seeds: int) -> None:
    """Fine-tune the 2bw arm and random weights on each task, and print the scores."""
    scores: dict[str, dict[str, list[float]]] = {}
    for task in tasks:
        length = _length(LENGTHS[task]) if task in LENGTHS else []
        places = {arm: folder / f"glue_{arm}_{task}" for arm in ("pretrained", "scratch")}
        together(
            [
                ["glue", str(folder / "2bw"), "--data", str(glue), "--tasks", task]
                + ["--seeds", str(seeds), "--work-dir", str(place), *FINE_TUNING, *length]
                + (["--from-scratch"] if arm == "scratch" else [])
                for arm, place in places.items()
            ]
        )
        scores[task] = {arm: scores_of(place) for arm, place in places.items()}
    print(f"\n{'task':<8}{'pretrained with 2bw':>24}{'from scratch':>24}{'gain':>8}")
    for task, found in scores.items():
        cells = [f"{statistics.mean(v):.2f} +- {spread(v):.2f}" for v in found.values()]
        gain = statistics.mean(found["pretrained"]) - statistics.mean(found["scratch"])
        print(f"{task:<8}{cells[0]:>24}{cells[1]:>24}{gain:>+8.2f}")


def _length(steps: int) -> list[str]:
    warmup = ["schedule.warmup_epochs=0", f"schedule.warmup_steps={steps // 10}"]
    return [f"train.steps={steps}", "train.epochs=none", *warmup]


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation, 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def scores_of(place: Path) -> list[float]:
    """Return the scores of one task by seed, from ``glue.json``."""
    (metrics,) = json.loads((place / "glue.json").read_text(encoding="utf-8"))["tasks"].values()
    return [float(value) for value in metrics["score"]["by_seed"].values()]


if __name__ == "__main__":
    main()
