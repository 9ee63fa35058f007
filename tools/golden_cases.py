"""The golden runs as values: recipes, overrides, and how revisions spell them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "executor.kind=pipeline executor.schedule=2bw executor.stages=2": (
        "pipeline.schedule=2bw pipeline.stages=2",
    ),
    "executor.kind=pipeline executor.schedule=1f1b executor.stages=2": (
        "pipeline.schedule=1f1b pipeline.stages=2",
    ),
}
"""How revisions spell an override otherwise; the first that the source knows is taken."""

PLAIN = (
    "log.every_steps=1",
    "log.loggers=[]",
    "loader.workers=0",
    "train.device=cpu",
    "train.batch_size=8",
    "evaluation.protocols=[]",
    "checkpoint.every_epochs=none",
)
IMAGES = (
    *PLAIN,
    "train.epochs=none",
    "schedule.warmup_epochs=0",
    "model.image_px=16",
    "data.image_px=16",
    "views.image_px=16",
    "model.width=16",
    "model.heads=2",
)
MAE = (
    *IMAGES,
    "train.steps=6",
    "model.depth=2",
    "objective.decoder_width=16",
    "objective.decoder_depth=1",
    "objective.decoder_heads=2",
    "optim.clip_norm=1",
    "ema.decay=0.9",
)
CLASSIFIER = (*IMAGES, "model.patch_px=8", "train.steps=6", "optim.layer_decay=0.8")
BERT = (
    *PLAIN,
    "train.steps=6",
    "train.accumulate=4",
    "schedule.warmup_steps=2",
    "model.width=32",
    "model.mlp_width=64",
    "model.dropout=0.1",
    "model.attention_dropout=0.1",
    "views.max_length=32",
    "checkpoint.every_steps=none",
)


@dataclass(frozen=True)
class Case:
    """One golden run: a recipe, its overrides and its ranks."""

    recipe: str
    words: tuple[str, ...]
    ranks: int = 1
    before: tuple[str, ...] = ()
    """Overrides of a run of the same recipe that comes first, in the work directory ``meta``."""


MODULE = 'modular={"kind":"hybrid","depths":[2,3],"live":[1],"meta":"meta"}'
CASES: Mapping[str, Case] = {
    "mae": Case("mae_digits", MAE),
    "mae_ddp": Case("mae_digits", MAE, ranks=2),
    "mae_fsdp": Case("mae_digits", (*MAE, "train.parallel=fsdp"), ranks=2),
    "mae_accumulate": Case("mae_digits", (*MAE, "train.accumulate=4")),
    "mae_bfloat16": Case("mae_digits", (*MAE, "train.precision=bfloat16")),
    "supervised_mixing": Case(
        "deit_digits",
        (
            *CLASSIFIER,
            "model.depth=2",
            "model.drop_path=0.2",
            "views.kind=supervised_views",
            "views.mix_mode=elem",
        ),
    ),
    "hybrid": Case(
        "deit_digits",
        (*CLASSIFIER, "model.depth=5", "model.drop_path=0.2", MODULE),
        before=(*CLASSIFIER, "model.depth=2"),
    ),
    "bert_2bw": Case(
        "bert_tiny_pydoc",
        (*BERT, "executor.kind=pipeline executor.schedule=2bw executor.stages=2"),
        ranks=2,
    ),
    "bert_1f1b": Case(
        "bert_tiny_pydoc",
        (*BERT, "executor.kind=pipeline executor.schedule=1f1b executor.stages=2"),
        ranks=2,
    ),
    "glue": Case(
        "glue_rte",
        (
            *PLAIN,
            "train.epochs=none",
            "train.steps=6",
            "schedule.warmup_epochs=1",
            "data.root=glue",
            "model.vocabulary_size=16",
            "model.width=32",
            "model.depth=2",
            "model.heads=2",
            "model.mlp_width=64",
            "views.max_length=32",
        ),
    ),
}


def spellings(words: Sequence[str]) -> Iterator[list[str]]:
    """Yield the overrides in every spelling, today's first."""
    choices = [(word, *SPELLINGS.get(word, ())) for word in words]
    for chosen in itertools.product(*choices):
        yield [word for phrase in chosen for word in phrase.split()]


def write_glue(folder: Path) -> None:
    """Write RTE in its official format: 20 pairs of sentences and their vocabulary."""
    (folder / "RTE").mkdir(parents=True)
    words = ("the", "film", "plot", "is", "was", "good", "bad", "a", "##s", ".")
    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    rows = [
        f"{i}\tthe {('film', 'plot')[i % 2]} is {('good', 'bad')[i % 3 % 2]} ."
        f"\ta {('plots', 'films')[i % 5 % 2]} was good\t{('not_', '')[i % 3 % 2]}entailment\n"
        for i in range(20)
    ]
    head = "index\tsentence1\tsentence2\tlabel\n"
    for name in ("train.tsv", "dev.tsv"):
        (folder / "RTE" / name).write_text(head + "".join(rows))
