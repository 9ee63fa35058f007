"""One training step of BERT beside Hugging Face's BertForPreTraining, interleaved in one process.

    python benchmarks/bert_step.py [--size base] [--batch 8] [--length 128] [--repeats 5]
                                   [--precision float32] [--clock wall] [--profile]
                                   [--text FOLDER --vocabulary VOCAB] [--pairing adjacent]

A step is forward, backward and torch's fused AdamW, dropout on, on the same sequences; theirs
computes with scaled-dot-product attention on the padded batch. One row has every sequence full; the
other the lengths of sentence pairs of a text (without --text, of Python's documentation), which
theirs gets padded to --length, as its users' pipelines do. *ratio* is the median of each repeat's
theirs/ours, with quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quadriga import randomness
from quadriga.contracts import Batch, DatasetConfig
from quadriga.data.text.corpus import TextCorpusConfig
from quadriga.data.text.pydoc import PydocCorpusConfig
from quadriga.data.text.sentence_pairs import SentencePairsConfig
from quadriga.methods.masked_lm import MaskedLM, MaskedLMConfig
from quadriga.models.bert import BertConfig

SIZES: dict[str, Callable[[], BertConfig]] = {
    "tiny": BertConfig.tiny,
    "mini": BertConfig.mini,
    "base": BertConfig.base,
    "large": BertConfig.large,
}
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
MASKED = 0.15
"""Share of the tokens that is to be predicted."""


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--text", type=Path, help="folder of text")
    parser.add_argument("--vocabulary", type=Path, help="vocab.txt for --text")
    parser.add_argument("--pairing", choices=("adjacent", "segments"), default="adjacent")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a busy machine")
    parser.add_argument("--profile", action="store_true", help="list our operations by time")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = SIZES[options.size]()
    sides = {
        "ours": Ours(model, options.precision, device, CLOCKS[options.clock]),
        "theirs": Theirs(model, options.precision, device, CLOCKS[options.clock]),
    }
    rows = {
        "every sequence full": [options.length] * options.batch,
        f"lengths of {options.pairing} pairs": lengths_of_text(options),
    }
    print(
        f"BERT-{options.size}, batch {options.batch} of {options.length}, {options.precision}, "
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{'':<28}{'real tokens':>12}{'theirs':>10}{'ours':>10}{'ratio':>8}{'quartiles':>14}")
    for name, lengths in rows.items():
        batch = made_up(lengths, options.length, model.vocabulary_size, device)
        if options.profile:
            profile(sides["ours"], batch)
        times = compare(sides, batch, options.repeats)
        ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        ours, theirs = (statistics.median(times[side]) for side in ("ours", "theirs"))
        share = sum(lengths) / (options.batch * options.length)
        print(
            f"{name:<28}{share:>11.0%} {theirs:>9.3f}s{ours:>9.3f}s{middle:>8.2f}"
            f"{low:>8.2f}-{high:.2f}"
        )


def lengths_of_text(options: argparse.Namespace) -> list[int]:
    """Return the lengths of a batch of pairs, drawn from all of a text."""
    data: DatasetConfig = PydocCorpusConfig()
    if options.text is not None:
        if options.vocabulary is None:
            raise SystemExit("--text needs --vocabulary VOCAB")
        data = TextCorpusConfig(root=options.text, vocabulary=options.vocabulary)
    corpus = data.build("train")
    views = SentencePairsConfig(max_length=options.length, pairing=options.pairing).build("train")
    keys = [randomness.fold("bert step", i) for i in range(options.batch)]
    samples = [views.sample(corpus.read(key % len(corpus)), key) for key in keys]
    return [int(sample["lengths"]) for sample in samples]


class Side:
    """A model with its optimizer."""

    model: nn.Module

    def __init__(self, precision: str, device: torch.device, clock: Clock) -> None:
        """Make the optimizer of `model`."""
        self._autocast = torch.autocast(
            device.type, getattr(torch, precision), enabled=precision != "float32"
        )
        self._device, self._clock = device, clock
        parameters = list(self.model.parameters())
        self._optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01, fused=True)

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        raise NotImplementedError

    def seconds(self, batch: Batch) -> float:
        """Make one step and return how long it took."""
        began = self._clock()
        with self._autocast:
            loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return self._clock() - began


class Ours(Side):
    """This project's model, on the real tokens."""

    def __init__(
        self, model: BertConfig, precision: str, device: torch.device, clock: Clock
    ) -> None:
        """Make model and optimizer."""
        with torch.device("meta"):
            objective: MaskedLM = MaskedLMConfig().build(model)
        self.model = objective.to_empty(device=device)
        objective.initialise(1)
        super().__init__(precision, device, clock)

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        with randomness.micro_batch(seed=1, step=0, index=0, replica=0):
            loss: Tensor = self.model(batch).value
        return loss


class Theirs(Side):
    """Hugging Face's model, on the padded batch."""

    def __init__(
        self, model: BertConfig, precision: str, device: torch.device, clock: Clock
    ) -> None:
        """Make model and optimizer."""
        from transformers import BertConfig as Config
        from transformers import BertForPreTraining

        config = Config(
            vocab_size=model.vocabulary_size,
            hidden_size=model.width,
            num_hidden_layers=model.depth,
            num_attention_heads=model.heads,
            intermediate_size=model.mlp_width,
            attn_implementation="sdpa",
        )
        self.model = BertForPreTraining(config).train().to(device)
        super().__init__(precision, device, clock)

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        output: Any = self.model(**arguments(batch))
        loss: Tensor = output.only.total
        return loss


def made_up(lengths: list[int], grid: int, vocabulary: int, device: torch.device) -> Batch:
    """Return sequences of the given lengths in a grid, some of their tokens to be predicted."""
    source = randomness.generator("bert step", grid)
    real = torch.tensor(lengths)
    is_real = torch.arange(grid) < real[:, None]
    words = torch.empty(is_real.shape, dtype=torch.int64)
    ids = words.random_(1000, vocabulary, generator=source) * is_real
    tokens = is_real.view(-1).nonzero()[:, 0]
    chosen = torch.empty(tokens.shape).uniform_(generator=source) < MASKED
    masked = chosen.nonzero()[:, 0]
    number = torch.arange(len(lengths))
    batch = {
        "ids": ids,
        "segments": ((torch.arange(grid) > real[:, None] // 2) & is_real).long(),
        "lengths": real,
        "tokens": tokens,
        "masked": masked,
        "targets": ids.view(-1)[tokens[masked]],
        "is_random": number % 2,
        "index": number,
        "key": number,
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def arguments(batch: Batch) -> dict[str, Tensor]:
    """Return the batch as Hugging Face's model takes it."""
    ids = batch["ids"]
    labels = torch.full_like(ids, -100).view(-1)
    labels[batch["tokens"][batch["masked"]]] = batch["targets"]
    columns = torch.arange(ids.shape[1], device=ids.device)
    return {
        "input_ids": ids,
        "token_type_ids": batch["segments"],
        "attention_mask": (columns < batch["lengths"][:, None]).long(),
        "labels": labels.view_as(ids),
        "next_sentence_label": batch["is_random"],
    }


def compare(sides: dict[str, Side], batch: Batch, repeats: int) -> dict[str, list[float]]:
    """Let the sides take turns; the first step of each does not count."""
    for side in sides.values():
        side.seconds(batch)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(max(2, repeats)):
        for name in list(sides) if repeat % 2 else reversed(list(sides)):
            times[name].append(sides[name].seconds(batch))
    return times


def profile(side: Side, batch: Batch) -> None:
    """Print where a step's time goes."""
    side.seconds(batch)
    with torch.profiler.profile() as trace:
        side.seconds(batch)
    print(trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=30))


if __name__ == "__main__":
    main()
