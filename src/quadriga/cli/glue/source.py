"""The source of ``quadriga glue``: a run, a checkpoint, a published model, or random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadriga.data.text.corpus import TextCorpusConfig
from quadriga.data.text.pydoc import PydocCorpusConfig
from quadriga.engine.checkpoint.read import is_checkpoint
from quadriga.engine.logs.directory import RunDirectory
from quadriga.errors import UserError
from quadriga.models.bert import BertConfig

SCRATCH = "scratch"
"""The word for random weights in the recipes' own model."""

_CONFIGS = ("config.json", "bert_config.json")


@dataclass(frozen=True)
class Source:
    """The properties of a pre-trained model that fine-tuning needs."""

    name: str
    """Name of the model in tables."""
    weights: Path | None = None
    """Value of ``warm_start.path``; None for random weights."""
    model: BertConfig | None = None
    """The model's config; None for that of the recipes."""
    vocabulary: Path | None = None
    lowercase: bool | None = None

    def values(self) -> dict[str, str]:
        """Return the overrides with which a recipe fine-tunes this model."""
        values: dict[str, str] = {}
        if self.model is not None:
            leaves = self.model.leaves("model")
            values |= {path: str(value) for path, value in leaves}
        if self.weights is not None:
            values["warm_start.path"] = str(self.weights)
        if self.vocabulary is not None:
            values["data.vocabulary"] = str(self.vocabulary)
        if self.lowercase is not None:
            values["data.lowercase"] = str(self.lowercase).lower()
        return values


def find_source(word: str) -> Source:
    """Return the source that a word of the command line names.

    Args:
        word: The path of a run, of a checkpoint in one, of a published model's folder or of the
            file of weights in it; or ``scratch``.

    Raises:
        UserError: The word names none of these, or the model is no BERT.
    """
    if word == SCRATCH:
        return Source(SCRATCH)
    path = Path(word)
    if not path.exists():
        raise UserError(
            f"{path} does not exist; name a run, a checkpoint, the folder of a published model, "
            f"or {SCRATCH}"
        )
    if is_checkpoint(path):
        return _of_run(path, path.resolve().parent.parent)
    folder = path if path.is_dir() else path.parent
    for name in _CONFIGS:
        if (folder / name).is_file():
            described = _read_json(folder / name)
            if {"config", "sources"} <= described.keys():
                return _of_run(path, folder)
            return _published(path, folder, folder / name)
    raise UserError(
        f"{folder} must hold the config.json of a run or of a published model, but does not; "
        "name such a folder"
    )


def _of_run(weights: Path, folder: Path) -> Source:
    config = RunDirectory(folder).read_config().config
    if not isinstance(config.model, BertConfig):
        raise UserError(f"glue needs a BERT, but model.kind of {folder} is {config.model.kind()}")
    vocabulary = getattr(config.data, "vocabulary", None)
    if isinstance(config.data, (PydocCorpusConfig, TextCorpusConfig)):
        kept = RunDirectory(folder).kept_file("data.vocabulary")
        vocabulary = Path(kept) if kept else config.data.vocabulary_file()
    lowercase = getattr(config.data, "lowercase", None)
    return Source(
        name=folder.name if weights == folder else f"{folder.name}_{weights.name}",
        weights=weights.resolve(),
        model=config.model,
        vocabulary=vocabulary.resolve() if isinstance(vocabulary, Path) else None,
        lowercase=lowercase if isinstance(lowercase, bool) else None,
    )


def _published(weights: Path, folder: Path, config: Path) -> Source:
    vocabulary = folder / "vocab.txt"
    if not vocabulary.is_file():
        raise UserError(
            f"{folder} must hold the model's vocab.txt beside {config.name}, but lacks it"
        )
    tokenizer = folder / "tokenizer_config.json"
    described = _read_json(tokenizer) if tokenizer.is_file() else {}
    return Source(
        name=folder.resolve().name,
        weights=weights.resolve(),
        model=BertConfig.from_bert_config(config),
        vocabulary=vocabulary.resolve(),
        # The tokenizers' own library has this default.
        lowercase=bool(described.get("do_lower_case", True)),
    )


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a group of keys, but holds {type(content).__name__}")
    return content
