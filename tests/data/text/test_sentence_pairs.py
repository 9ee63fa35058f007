"""Samples of pairs of sentences: every invariant, whatever the text, the key and the options."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import TOKENS, corpus, vocabulary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errors import refuses
from loading import loader_of
from quadriga.contracts import Share
from quadriga.data.reading.loader import sequential
from quadriga.data.text.corpus import TextCorpus, TextCorpusConfig
from quadriga.data.text.sentence_pairs import SentencePairsConfig, cut, longest_first
from quadriga.distributed.environment import SINGLE
from quadriga.randomness import fold

SIZES = (4, 3, 5, 1, 2, 30, 12)
CLS, SEP, MASK = (TOKENS.index(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
KEYS = st.integers(-(2**63), 2**63 - 1)
OPTIONS = st.fixed_dictionaries(
    {
        "max_length": st.integers(8, 70),
        "pairing": st.sampled_from(["adjacent", "segments"]),
        "next_sentence": st.booleans(),
        "whole_word": st.booleans(),
        "max_predictions": st.none() | st.integers(1, 12),
        "short_probability": st.sampled_from([0.0, 0.5]),
        "mask_probability": st.floats(0.01, 0.9),
    }
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextCorpus:
    return corpus(tmp_path_factory.mktemp("text"), SIZES)


def parts(sample) -> tuple[list[int], list[int]]:
    """Return A and B without special tokens, as they were before tokens were hidden."""
    ids = np.where(sample["labels"] >= 0, sample["labels"], sample["ids"])
    border, length = int(sample["border"]), int(sample["lengths"])
    return ids[1 : border - 1].tolist(), ids[border : length - 1].tolist()


def contains(whole, part: list[int]) -> bool:
    whole = list(whole)
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), OPTIONS, KEYS)
def test_every_sample_keeps_the_rules(text: TextCorpus, data, options, key: int) -> None:
    view = SentencePairsConfig(**options).build("train")
    index = data.draw(st.integers(0, len(text) - 1))
    sample = view.sample(text.read(index), key)
    again = view.sample(text.read(index), key)
    assert all(np.array_equal(sample[name], again[name]) for name in sample)
    ids, labels = sample["ids"], sample["labels"]
    length, border = int(sample["lengths"]), int(sample["border"])
    assert ids.shape == labels.shape == (options["max_length"],)
    assert 4 <= length + options["next_sentence"] <= options["max_length"] + 1
    assert ids[[0, border - 1, length - 1]].tolist() == [CLS, SEP, SEP]
    assert not ids[length:].any()
    special = [0, border - 1, length - 1, *range(length, options["max_length"])]
    assert (labels[special] == -1).all()
    hidden = int((labels >= 0).sum())
    assert 1 <= hidden <= (options["max_predictions"] or options["max_length"])
    first, second = parts(sample)
    assert not {SEP, CLS, MASK} & {*first, *second}

    place = text.place(index)
    tokens, starts = text.store.tokens, text.store.sentences
    own = tokens[starts[place.sentence] : starts[place.end]].tolist()
    assert first
    assert contains(own, first)
    if not options["next_sentence"]:
        assert "is_random" not in sample
        assert not second
        return
    assert second
    begin, end = text.document(place.document)
    document = tokens[starts[begin] : starts[end]].tolist()
    others = set(tokens[: starts[begin]].tolist() + tokens[starts[end] :].tolist())
    period = TOKENS.index(".")
    if sample["is_random"]:
        assert set(second) - {period} <= others
        assert not set(second) - {period} & set(document)
    else:
        assert contains(own, second)
    if options["pairing"] == "adjacent":
        sentence = tokens[starts[place.sentence] : starts[place.sentence + 1]].tolist()
        assert sentence[: len(first)] == first
        if not sample["is_random"]:
            after = tokens[starts[place.sentence + 1] : starts[place.sentence + 2]].tolist()
            assert after[: len(second)] == second
            room = options["max_length"] - 3
            assert (len(first), len(second)) == longest_first(len(sentence), len(after), room)


def by_popping(first: int, second: int, room: int) -> tuple[int, int]:
    while first + second > room:
        if first > second:
            first -= 1
        else:
            second -= 1
    return first, second


@given(st.integers(1, 300), st.integers(1, 300), st.integers(2, 300))
def test_truncation_is_that_of_popping_from_the_longer(first: int, second: int, room: int) -> None:
    assert longest_first(first, second, room) == by_popping(first, second, room)


@given(st.integers(1, 50), st.integers(1, 60), KEYS)
def test_a_cut_keeps_what_is_within(size: int, length: int, key: int) -> None:
    found = cut(np.arange(size), length, key).tolist()
    assert len(found) == min(size, length)
    assert found == list(range(found[0], found[0] + len(found)))


def test_both_ends_are_cut() -> None:
    fronts = [int(cut(np.arange(30), 20, fold(k))[0]) for k in range(300)]
    assert 4.5 < np.mean(fronts) < 5.5
    assert min(fronts) <= 2
    assert max(fronts) >= 8


@pytest.mark.parametrize("pairing", ["adjacent", "segments"])
def test_half_of_the_pairs_are_random_from_all_other_documents(
    text: TextCorpus, pairing: str
) -> None:
    view = SentencePairsConfig(pairing=pairing).build("train")
    index = next(i for i in range(len(text)) if text.place(i).document == 2)
    samples = [view.sample(text.read(index), fold(pairing, k)) for k in range(1400)]
    random = [parts(s)[1] for s in samples if s["is_random"]]
    assert 700 - 5 * 19 < len(random) < 700 + 5 * 19
    letters = [max(TOKENS[i] for i in second) for second in random]  # "." is the lowest
    counts = {letter: letters.count(letter) for letter in set(letters)}
    assert sorted(counts) == ["a", "b", "d", "e", "f", "g"]  # every document but "c"
    assert all(60 < count < 180 for count in counts.values())


@pytest.mark.parametrize("pairing", ["adjacent", "segments"])
def test_whole_words_end_with_their_segment(tmp_path: Path, pairing: str) -> None:
    vocabulary(tmp_path)
    word = "abcdefghij"  # ten pieces, so that most cuts go through a word
    lines = [f"{word} " * 3, word, f"{word} {word}", "a"]
    text = "\n\n".join("\n".join(lines) for _ in range(3))
    (tmp_path / "text.txt").write_text(text)
    config = TextCorpusConfig(root=tmp_path, format="sentences", test_fraction=0)
    found = config.build("train")
    view = SentencePairsConfig(max_length=24, pairing=pairing, whole_word=True).build("train")
    partial = apart = 0
    for index, k in itertools.product(range(len(found)), range(30)):
        sample = view.sample(found.read(index), fold(k, index))
        hidden, border = sample["labels"] >= 0, int(sample["border"])
        for segment, first in zip(parts(sample), (1, border), strict=True):
            starts = [not TOKENS[i].startswith("##") for i in segment]
            partial += not starts[0]
            word_of = np.cumsum([True, *starts[1:]])
            chosen = hidden[first : first + len(segment)]
            assert np.array_equal(np.isin(word_of, word_of[chosen]), chosen)
        # The rest of a word that B begins with is no part of A's last word.
        apart += not starts[0] and hidden[border] != hidden[border - 2]
    assert (apart > 10) == (pairing == "segments")
    assert (partial > 100) == (pairing == "segments")


def test_segments_are_filled_and_sometimes_short(text: TextCorpus) -> None:
    index = next(i for i in range(len(text)) if text.place(i).document == 5)
    lengths = {}
    for short in (0.0, 1.0):
        config = SentencePairsConfig(pairing="segments", max_length=64, short_probability=short)
        view = config.build("train")
        lengths[short] = [
            int(s["lengths"])
            for s in (view.sample(text.read(index), fold(k)) for k in range(200))
            if not s["is_random"]
        ]
    assert set(lengths[0.0]) == {64}
    # As published, a sample ends with the sentence that reaches the length that was drawn.
    assert len(set(lengths[1.0])) > 8
    assert min(lengths[1.0]) < 16


def test_an_epoch_is_every_sentence_that_has_a_successor(text: TextCorpus) -> None:
    assert len(text) == sum(SIZES) - len(SIZES)
    view = SentencePairsConfig(max_length=512).build("train")
    found = set()
    for index in range(len(text)):
        key = next(k for k in range(99) if not view.sample(text.read(index), k)["is_random"])
        first, second = parts(view.sample(text.read(index), key))
        found.add((first[0], len(first), second[0], len(second)))
    assert found == {
        (TOKENS.index("abcdefg"[d]), n + 2, TOKENS.index("abcdefg"[d]), n + 3)
        for d, size in enumerate(SIZES)
        for n in range(size - 1)
    }


ALL = Share()


def batches(text: TextCorpus, workers=0, accumulate=1, share=ALL, **options):
    view = SentencePairsConfig(**{"max_length": 32, **options}).build("train")
    with loader_of(
        text, view, batch_size=8, workers=workers, accumulate=accumulate, share=share
    ) as loader:
        return list(loader.batches(range(3)))


def rows(found) -> list[tuple]:
    """Return what each sample says, free of the length that its batch was trimmed to."""
    rows = []
    for b in found:
        flat = torch.full((b["ids"].numel(),), -1)
        flat[b["tokens"][b["masked"]]] = b["targets"]
        labels = flat.view(b["ids"].shape)
        for i, n in enumerate(b["lengths"].tolist()):
            sample = [t[i, :n].tolist() for t in (b["ids"], b["segments"], labels)]
            rows.append((sample, int(b["is_random"][i]), int(b["index"][i]), int(b["key"][i])))
    return rows


def test_samples_do_not_depend_on_who_reads_them(text: TextCorpus) -> None:
    whole = rows(batches(text))
    assert rows(batches(text, accumulate=4)) == whole
    assert rows(batches(text, workers=2)) == whole
    ranks = [batches(text, share=Share(rank, 2)) for rank in range(2)]
    assert rows(itertools.chain.from_iterable(zip(*ranks, strict=True))) == whole
    assert rows(batches(text, padding="fixed")) == whole


def test_a_batch_is_what_the_contract_says(text: TextCorpus) -> None:
    for padding in ("longest", "fixed"):
        for b in batches(text, padding=padding):
            size, length = b["ids"].shape
            assert size == 8
            assert length == (32 if padding == "fixed" else int(b["lengths"].max()))
            real = torch.arange(length) < b["lengths"][:, None]
            if padding == "fixed":
                assert torch.equal(b["tokens"], torch.arange(size * length))
            else:
                assert torch.equal(b["tokens"], real.flatten().nonzero().squeeze(1))
            assert torch.equal(b["masked"], b["masked"].unique())
            assert real.flatten()[b["tokens"][b["masked"]]].all()
            assert len(b["targets"]) == len(b["masked"])
            assert not b["segments"][~real].any()
            assert not b["segments"][:, 0].any()
            ends = b["lengths"] - 1
            assert b["segments"].gather(1, ends[:, None]).all()
            assert all(tensor.dtype == torch.int64 for tensor in b.values())
            assert set(b) == {
                *("ids", "segments", "lengths", "tokens", "masked", "targets"),
                *("is_random", "index", "key"),
            }


@pytest.mark.parametrize("options", [{}, {"next_sentence": False}, {"padding": "fixed"}])
def test_the_example_is_like_a_batch(text: TextCorpus, options: dict) -> None:
    view = SentencePairsConfig(max_length=32, **options).build("train")
    found = next(iter(sequential(text, view, range(4), batch_size=4, env=SINGLE, workers=0)))
    for device in ("cpu", "meta"):
        example = view.example(4, torch.device(device))
        assert {k: (t.dtype, t.dim()) for k, t in example.items()} == {
            k: (t.dtype, t.dim()) for k, t in found.items()
        }
        assert example["tokens"].shape == (4 * 32,)
        assert example["targets"].shape == example["masked"].shape
    assert view.example(3, torch.device("cpu"))["masked"].max() < 3 * 32


def test_evaluation_is_the_same_every_time(text: TextCorpus) -> None:
    view = SentencePairsConfig(max_length=32).build("test")
    runs = [
        rows(sequential(text, view, range(20), batch_size=size, env=SINGLE, workers=0))
        for size in (20, 20, 7)
    ]
    assert runs[0] == runs[1] == runs[2]


def test_one_document_has_no_random_second(tmp_path: Path) -> None:
    alone = corpus(tmp_path, sizes=(5,))
    view = SentencePairsConfig().build("train")
    with refuses("views.next_sentence=false"):
        view.sample(alone.read(0), 1)
    SentencePairsConfig(next_sentence=False).build("train").sample(alone.read(0), 1)
