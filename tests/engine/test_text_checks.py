"""What is checked of text before a run starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from quadriga.contracts import Dataset
from quadriga.data.digits import DigitsConfig
from quadriga.data.image_views import ImageViewsConfig
from quadriga.data.pydoc_corpus import PydocCorpusConfig
from quadriga.data.sentence_pairs import SentencePairsConfig
from quadriga.engine.start import check_text
from quadriga.errors import UserError

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
    with pytest.raises(
        UserError,
        match=r"^model\.vocabulary_size must be at least 1000 \(the tokens of data\.vocabulary\), "
        r"but is 999$",
    ):
        check_text(config(vocabulary_size=999), corpus)
    with pytest.raises(UserError, match=r"^views\.max_length must be at most 64 \(model\.max_posi"):
        check_text(config(max_positions=64), corpus)
    with pytest.raises(UserError, match=r"do not go together: one is of text; set views\.kind=sen"):
        check_text(config(ImageViewsConfig()), corpus)
    images = DigitsConfig()
    wrong = SimpleNamespace(data=images, views=SentencePairsConfig(), model=SimpleNamespace())
    with pytest.raises(UserError, match=r"set data\.kind=text_corpus"):
        check_text(wrong, images.build("train"))  # type: ignore[arg-type]
