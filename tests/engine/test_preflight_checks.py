"""What is checked of data, views and models before a run starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from errors import refuses
from quadriga.contracts import Dataset, StepPlan, ViewsConfig
from quadriga.data.images.digits import DigitsConfig
from quadriga.data.text.pydoc import PydocCorpusConfig
from quadriga.data.text.sentence_pairs import SentencePairsConfig
from quadriga.data.text.text_pairs import TextPairsConfig
from quadriga.data.views.crops import ImageViewsConfig
from quadriga.data.views.shifts import ShiftedViewsConfig
from quadriga.data.views.supervised import SupervisedViewsConfig
from quadriga.distributed.environment import SINGLE
from quadriga.engine.build import build_on_meta
from quadriga.engine.evaluate import evaluation_data, make_context
from quadriga.engine.logs.console import Console
from quadriga.engine.preflight import check_start
from quadriga.engine.resume import announce
from quadriga.engine.run_plan import make_plan
from quadriga.evaluation.held_out import HeldOutConfig
from quadriga.methods.masked_lm import MaskedLMConfig
from quadriga.methods.sequence_classification import SequenceClassificationConfig
from quadriga.models.bert import BertConfig
from quadriga.recipes.bert import bert_mini, bert_tiny_pydoc
from quadriga.recipes.find import find_recipe

CORPUS = PydocCorpusConfig(vocabulary_size=1000)


@pytest.fixture(scope="module")
def corpus() -> Dataset:
    return CORPUS.build("train")


def test_a_model_is_large_enough(corpus: Dataset) -> None:
    views = SentencePairsConfig()
    for method in (MaskedLMConfig(), SequenceClassificationConfig()):
        method.check(BertConfig(vocabulary_size=1000, max_positions=128), corpus, views)
        with refuses("model.vocabulary_size", "1000", "999", "raise"):
            method.check(BertConfig(vocabulary_size=999), corpus, views)
        for data in (corpus, None):
            with refuses("views.max_length", "64", "128", "lower"):
                method.check(BertConfig(max_positions=64), data, views)
        with refuses("views.kind", "image_views", "set"):
            method.check(BertConfig(), None, ImageViewsConfig())


@pytest.mark.parametrize(
    "views", [ImageViewsConfig(), ShiftedViewsConfig(), SupervisedViewsConfig(), TextPairsConfig()]
)
def test_views_of_something_else_name_those_of_a_corpus(
    corpus: Dataset, views: ViewsConfig
) -> None:
    with refuses("views.kind", views.kind(), "sentence_pairs"):
        views.check(corpus, "train", None)
    SentencePairsConfig().check(corpus, "train", None)


def test_views_of_texts_name_the_data_that_they_need() -> None:
    images = DigitsConfig().build("train")
    for views, wanted in ((SentencePairsConfig(), "text_corpus"), (TextPairsConfig(), "glue")):
        with refuses(f"views.kind={views.kind()}", f"data.kind={wanted}"):
            views.check(images, "train", None)
    ImageViewsConfig().check(images, "train", None)


def test_every_micro_batch_has_two_images_to_mix() -> None:
    images, views = DigitsConfig().build("train"), SupervisedViewsConfig()
    plan = StepPlan(10, 16, accumulate=4, world_size=2, dataset_size=100, lr=1.0)
    views.check(images, "train", plan)
    fewer = dataclasses.replace(plan, batch_size=15)
    with refuses("train.batch_size", "2 x 8", "15", "train.accumulate"):
        views.check(images, "train", fewer)
    SupervisedViewsConfig(mixup=0, cutmix=0).check(images, "train", fewer)


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
    data, console = evaluation_data(run), Console()
    context = make_context(run, None, data, tmp_path, SINGLE, console)  # type: ignore[arg-type]
    with refuses("test split", "data.test_fraction"):
        HeldOutConfig().build().check(context)


def test_all_ranks_know_of_a_long_warm_up_and_one_says_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = bert_tiny_pydoc().override({"train.steps": 5})
    plan, objective = make_plan(run, 3000, 1), build_on_meta(run)
    for rank in range(2):
        env = dataclasses.replace(SINGLE, rank=rank, world_size=2)
        announce(Console(env.is_main), run, plan, objective, 0, env)
    assert capsys.readouterr().err.count("the warm-up of 60 steps is not over") == 1


@pytest.mark.parametrize(("group", "ranks", "fits"), [(8, 2, True), (32, 2, True), (7, 2, False)])
def test_groups_of_statistics_fit_the_ranks_before_any_starts(
    group: int, ranks: int, fits: bool
) -> None:
    words = {"objective.statistics_group": str(group), "train.batch_size": "32"}
    config = find_recipe("swav_digits")().override(words)
    if fits:
        check_start(config, ranks)  # type: ignore[arg-type]
        return
    with refuses("objective.statistics_group", "7", "16", "train.batch_size"):
        check_start(config, ranks)  # type: ignore[arg-type]
