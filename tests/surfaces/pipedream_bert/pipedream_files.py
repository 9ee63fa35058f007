"""A tiny corpus, vocabulary, BERT and GLUE task for the documented BERT commands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

NOUNS = "cat dog king queen child horse river tree house stone".split()
VERBS = "sees finds loves follows hears".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True)
class Files:
    """Where everything is."""

    folder: Path

    @property
    def text(self) -> Path:
        """The folder of the corpus, which holds the vocabulary too."""
        return self.folder / "text"

    @property
    def vocabulary(self) -> Path:
        return self.text / "vocab.txt"

    @property
    def bert(self) -> Path:
        return self.folder / "bert_config.json"

    @property
    def conf(self) -> Path:
        """Two stages on two ranks, in the form with single quotes."""
        return self.folder / "conf.json"

    @property
    def data_parallel(self) -> Path:
        """One stage on two ranks."""
        return self.folder / "dp_conf.json"

    @property
    def task(self) -> Path:
        return self.folder / "glue" / "RTE"

    def words(self, *more: str) -> list[str]:
        """Return what every command line of `main_with_runtime.py` here has."""
        return [
            *("--module", "models.bert4.depth=2", "--max_seq_length", "16"),
            *("--train_path", str(self.text), "--vocab_path", str(self.vocabulary)),
            *("--bert_config_path", str(self.bert), "--train_batch_size", "4"),
            *("--do_train", "--do_lower_case", "--no_cuda"),
            *more,
        ]

    def glue_arguments(self, *more: str) -> list[str]:
        """Return what every command line of `compute_glue_scores.py` here has."""
        return [
            *("--data_dir", str(self.task), "--task_name", "RTE", "-m", "models.bert4.depth=2"),
            *("--bert_config_path", str(self.bert), "--max_seq_length", "16", "--no_cuda"),
            *more,
        ]


QUIET = ("--override", "log.loggers=[]", "--override", "loader.workers=0")
"""What makes a run in a test shorter."""


def sentence(number: int) -> str:
    noun, verb = NOUNS[number % 10], VERBS[number // 10 % 5]
    return f"The {noun} {verb} the {NOUNS[number * 7 % 10]} ."


def make_files(folder: Path) -> Files:
    """Write them all."""
    files = Files(folder)
    files.text.mkdir()
    documents = ["\n".join(sentence(d * 5 + s) for s in range(2 + d % 4)) for d in range(20)]
    (files.text / "wiki.txt").write_text("\n\n".join(documents) + "\n")
    pieces = [*SPECIAL, *sorted({*NOUNS, *VERBS, "the", "."})]
    files.vocabulary.write_text("\n".join(pieces) + "\n")
    sizes = {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 8,
        "initializer_range": 0.02,
        "intermediate_size": 16,
        "max_position_embeddings": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 12,
        "type_vocab_size": 2,
        "vocab_size": 32,
    }
    files.bert.write_text(json.dumps(sizes))
    files.conf.write_text(
        "{'module_to_stage_map': [0, 1, 1], 'stage_to_rank_map': {'0': [0], '1': [1]}}\n"
    )
    files.data_parallel.write_text(
        json.dumps({"module_to_stage_map": [0, 0, 0], "stage_to_rank_map": {"0": [0, 1]}})
    )
    files.task.mkdir(parents=True)
    for split, rows in (("train", 24), ("dev", 12)):
        lines = ["index\tsentence1\tsentence2\tlabel"]
        for i in range(rows):
            label = ("entailment", "not_entailment")[i % 2]
            lines.append(f"{i}\t{sentence(i)}\t{sentence(i + i % 2)}\t{label}")
        (files.task / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return files
