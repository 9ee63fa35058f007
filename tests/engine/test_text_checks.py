"""What is checked of text before a run starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from errors import refuses
from quadriga.contracts import Dataset
from quadriga.data.images.digits import DigitsConfig
from quadriga.data.text.pydoc import PydocCorpusConfig
from quadriga.data.text.sentence_pairs import SentencePairsConfig
from quadriga.data.views.crops import ImageViewsConfig
from quadriga.distributed.environment import SINGLE
from quadriga.engine.build import build_on_meta
from quadriga.engine.evaluate import make_context
from quadriga.engine.logs.console import Console
from quadriga.engine.preflight import check_text
from quadriga.engine.resume import announce
from quadriga.engine.run_plan import make_plan
from quadriga.recipes.bert import bert_mini, bert_tiny_pydoc

CORPUS = PydocCorpusConfig(vocabulary_size=1000)


@pytest.fixture(scope="module")
def corpus() -> Dataset:
    return CORPUS.build("train")


def config(views: Any = None, **model: int) -> Any:
    views = views or SentencePairsConfig()
    return SimpleNamespace(data=CORPUS, views=views, model=SimpleNamespace(**model))


def test_a_model_that_is_large_enough(corpus: Dataset) -> None:
    check_text(config(vocabulary_size=1000, max_positions=128), corpus)
    check_text(config(), corpus)


def test_what_does_not_fit_is_named(corpus: Dataset) -> None:
    with refuses("model.vocabulary_size", "1000", "data.vocabulary", "999"):
        check_text(config(vocabulary_size=999), corpus)
    with refuses("views.max_length", "64", "model.max_positions"):
        check_text(config(max_positions=64), corpus)
    with refuses("views.kind=sentence_pairs"):
        check_text(config(ImageViewsConfig()), corpus)
    images = DigitsConfig()
    wrong = SimpleNamespace(data=images, views=SentencePairsConfig(), model=SimpleNamespace())
    with refuses("data.kind=text_corpus"):
        check_text(wrong, images.build("train"))  # type: ignore[arg-type]


def test_a_test_split_of_one_document_is_told_before_training(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "train.txt").write_text("a\na\n\na\na\n")
    (tmp_path / "test.txt").write_text("a\na\n")
    changes = {
        "data.root": str(tmp_path),
        "data.test_files": "test.txt",
        "data.format": "sentences",
    }
    run = bert_mini().override({**changes, "train.device": "cpu"})
    with refuses("test split", "data.test_fraction"):
        make_context(run, None, tmp_path, SINGLE, Console())  # type: ignore[arg-type]


def test_all_ranks_know_of_a_long_warm_up_and_one_says_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = bert_tiny_pydoc().override({"train.steps": 5})
    plan, objective = make_plan(run, 3000, 1), build_on_meta(run)
    for rank in range(2):
        env = dataclasses.replace(SINGLE, rank=rank, world_size=2)
        announce(Console(env.is_main), run, plan, objective, 0, env)
    assert capsys.readouterr().err.count("warm-up of 60 steps") == 1
