"""Samples of masked language modelling: pairs of segments with hidden tokens.

Which tokens are hidden, and by what (Devlin et al., "BERT", 2019, section 3.1 and A.1).
"""

from __future__ import annotations

from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from quadriga.contracts import Batch, Dataset, Sample, Split, StepPlan, Transform, ViewsConfig
from quadriga.data.text.corpus import TextCorpus, TextRecord
from quadriga.errors import UserError
from quadriga.randomness import Stream, bits_numpy, fold

_CHOOSE, _REPLACE = fold("mask"), fold("replacement of the masked")
_EIGHTY, _NINETY = int(0.8 * 2**32), int(0.9 * 2**32)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def choose_tokens(
    count: int, probability: float, limit: int | None, key: int
) -> npt.NDArray[np.int64]:
    """Choose each of `count` tokens with the same probability, at least one of them.

    Args:
        count: Number of tokens, at least 1.
        probability: Of each, independent of the others.
        limit: Most that are chosen: those with the lowest draws; None for no limit.
        key: The sample's key.

    Returns:
        int64 places, ascending.
    """
    draws = bits_numpy(fold(key, _CHOOSE), count)
    chosen = np.flatnonzero(draws < _bound(probability))
    if not chosen.size:
        return np.array([draws.argmin()])
    if limit is not None and chosen.size > limit:
        lowest = draws[chosen].argpartition(limit - 1)[:limit]
        chosen = np.sort(chosen[lowest])
    return chosen


def choose_words(
    starts: npt.NDArray[np.bool_], probability: float, limit: int | None, key: int
) -> npt.NDArray[np.int64]:
    """Choose each word with the same probability, all its tokens with it, at least one word.

    Where no word fits into the limit, as many tokens of the one with the lowest draw are chosen.

    Args:
        starts: bool (count,): whether a token starts a word; the first does in any case.
        probability: Of each word, and so of each token.
        limit: Most tokens that are chosen: words are taken by ascending draw, and those that do
            not fit are left out; None for no limit.
        key: The sample's key.

    Returns:
        int64 places of tokens, ascending.
    """
    word = np.cumsum(starts, dtype=np.int64) - int(starts[0])
    sizes = np.bincount(word)
    draws = bits_numpy(fold(key, _CHOOSE), len(sizes))
    taken = draws < _bound(probability)
    if not taken.any():
        fitting = sizes <= (len(starts) if limit is None else limit)
        if fitting.any():
            draws = np.where(fitting, draws, np.uint64(2**64 - 1))
        taken[draws.argmin()] = True
    if limit is not None and sizes[taken].sum() > limit:
        order = np.flatnonzero(taken)
        order = order[draws[order].argsort()]
        taken[:] = False
        room = limit
        for number in order.tolist():
            if sizes[number] <= room:
                taken[number] = True
                room -= int(sizes[number])
        if room == limit:
            return np.flatnonzero(word == order[0])[:limit]
    return np.flatnonzero(taken[word])


def _bound(probability: float) -> np.uint64:
    return np.uint64(min(int(probability * 2**64), 2**64 - 1))


def hide(originals: Ids, mask: int, vocabulary_size: int, key: int) -> npt.NDArray[np.int64]:
    """Return what stands in the chosen places: 80 % ``[MASK]``, 10 % any token, 10 % as it was.

    Args:
        originals: The ids that were chosen.
        mask: The id of ``[MASK]``.
        vocabulary_size: A random token is drawn from this many.
        key: The sample's key.

    Returns:
        int64 ids.
    """
    draws = bits_numpy(fold(key, _REPLACE), len(originals))
    action = (draws >> _HALF).astype(np.int64)
    random = (((draws & _LOW) * np.uint64(vocabulary_size)) >> _HALF).astype(np.int64)
    return np.where(action < _EIGHTY, mask, np.where(action < _NINETY, random, originals))


_PAIR, _CUT = fold("pair of segments"), fold("truncation")

Ids = npt.NDArray[Any]


@final
class SentencePairsConfig(ViewsConfig):
    """``[CLS] A [SEP] B [SEP]``, some of the tokens hidden.

    A starts with the sample's sentence. B follows it in the text, or with probability 0.5 is from
    another document of the split: documents are drawn with equal probability, then where it starts
    in it.
    """

    max_length: int = Field(128, ge=8)
    """Tokens of a sample, with the three special ones."""
    mask_probability: float = Field(0.15, gt=0, lt=1)
    """Probability that a token is to be predicted; at least one of a sample is. Of those 80 % are
    hidden by ``[MASK]``, 10 % by any token, 10 % left as they are."""
    whole_word: bool = False
    """Whether all pieces of a word are to be predicted, or none."""
    max_predictions: int | None = Field(None, ge=1)
    """Most tokens of a sample that are to be predicted."""
    pairing: Literal["adjacent", "segments"] = "adjacent"
    """adjacent: A and B are one sentence each. segments: sentences that follow one another up to
    `max_length`, cut between two of them into A and B (the BERT paper)."""
    next_sentence: bool = True
    """Whether there is a B, and so the task of telling whether it follows; else ``[CLS] A [SEP]``
    of sentences that follow one another."""
    short_probability: float = Field(0.1, ge=0, le=1)
    """segments: probability that a sample aims for a length drawn from 2 to the longest."""
    padding: Literal["longest", "fixed"] = "longest"
    """longest: a micro-batch is as long as its longest sample, and padding is no token. fixed: it
    has `max_length` columns, all of them tokens: for schedules that need equal shapes."""

    def check(self, dataset: Dataset, split: Split, plan: StepPlan | None) -> None:
        """Check that the records are those of a corpus, with two documents where pairs need them.

        Raises:
            UserError: They are not, or there is one document only.
        """
        if not isinstance(dataset, TextCorpus):
            raise UserError(
                "views.kind=sentence_pairs needs the documents of a corpus, but the data has none; "
                "set data.kind=text_corpus, or take another views.kind"
            )
        self.check_documents(dataset, split)

    def check_documents(self, corpus: TextCorpus, split: Split | None = None) -> None:
        """Check that a random second segment can be of another document than the first.

        Args:
            corpus: The sentences.
            split: Which part of the data they are, for the message.

        Raises:
            UserError: A random second segment needs another document, and there is none.
        """
        if self.next_sentence and len(corpus.documents) < 2:
            where = "the data has one only" if split is None else f"the {split} split has one only"
            remedy = "raise data.test_fraction, " if split == "test" else ""
            raise UserError(
                f"a random second segment is from another document, but {where}; add text, {remedy}"
                "cut long documents with data.document_sentences, or set views.next_sentence=false"
            )

    def build(self, split: Split) -> Transform:
        """Make the samples' transform; evaluation draws from keys that are always the same."""
        return SentencePairs(self)


@final
class SentencePairs(Transform):
    """From a sentence's number to a row of ids; what depends on the batch on the device."""

    def __init__(self, config: SentencePairsConfig) -> None:
        """Take the parameters from `config`."""
        self.config = config
        self._checked: TextCorpus | None = None

    def sample(self, record: TextRecord, key: int) -> Sample:
        """Put one sample together.

        Returns:
            ``ids`` int32 (max_length,), padded with 0; ``labels`` int32 (max_length,): what the
            tokens to predict were, -1 elsewhere; int64 (): ``border`` (where B starts),
            ``lengths`` and, with `next_sentence`, ``is_random``.

        Raises:
            UserError: See `SentencePairsConfig.check_documents`.
        """
        config, corpus = self.config, record.corpus
        if corpus is not self._checked:
            config.check_documents(corpus)
            self._checked = corpus
        first, second, is_random = self._segments(corpus, record.number, key)
        a, count = len(first), len(first) + len(second)
        pieces = np.concatenate((first, second))
        if config.whole_word:
            starts = ~corpus.continuations[pieces]
            starts[0] = True
            starts[a : a + 1] = True
            chosen = choose_words(starts, config.mask_probability, config.max_predictions, key)
        else:
            chosen = choose_tokens(count, config.mask_probability, config.max_predictions, key)
        originals = pieces[chosen]
        special = corpus.special
        pieces[chosen] = hide(originals, special.mask, special.size, key)
        ids = np.zeros(config.max_length, np.int32)
        ids[0] = special.class_
        ids[1 : a + 1] = pieces[:a]
        ids[a + 1] = special.separator
        labels = np.full(config.max_length, -1, np.int32)
        labels[chosen + 1 + (chosen >= a)] = originals
        sample = {"ids": ids, "labels": labels, "border": np.array(a + 2)}
        if not config.next_sentence:
            return {**sample, "lengths": np.array(a + 2)}
        ids[a + 2 : count + 2] = pieces[a:]
        ids[count + 2] = special.separator
        return {**sample, "lengths": np.array(count + 3), "is_random": np.array(int(is_random))}

    def _segments(self, corpus: TextCorpus, index: int, key: int) -> tuple[Ids, Ids, bool]:
        """Return A and B, not longer than there is room for, and whether B is a random one."""
        config = self.config
        room = config.max_length - 3 if config.next_sentence else config.max_length - 2
        stream = Stream(fold(key, _PAIR))
        if config.pairing == "adjacent" and config.next_sentence:
            first, second, is_random = _adjacent(corpus, index, stream)
            a, b = longest_first(len(first), len(second), room)
            return first[:a], second[:b], is_random
        if stream.uniform() < config.short_probability and config.pairing == "segments":
            target = 2 + stream.integer(room - 1)
        else:
            target = room
        if not config.next_sentence:
            first = _following(corpus, index, target, 1, stream)
            return cut(first, min(room, len(first)), fold(key, _CUT, 0)), first[:0], False
        first, second, is_random = _two_segments(corpus, index, target, stream)
        a, b = longest_first(len(first), len(second), room)
        return cut(first, a, fold(key, _CUT, 0)), cut(second, b, fold(key, _CUT, 1)), is_random

    def batch(self, batch: Batch) -> Batch:
        """Trim the rows, and find the tokens and those to predict."""
        ids, labels, lengths = batch["ids"], batch["labels"], batch["lengths"]
        is_fixed = self.config.padding == "fixed"
        length = ids.shape[1] if is_fixed else int(lengths.max())
        ids, labels = ids[:, :length].long(), labels[:, :length].flatten()
        column = torch.arange(length, device=ids.device)
        real = column < lengths[:, None]
        segments = (real & (column >= batch["border"][:, None])).long()
        if is_fixed:
            tokens = torch.arange(labels.numel(), device=ids.device)
        else:
            tokens = real.flatten().nonzero().squeeze(1)
            labels = labels[tokens]
        masked = (labels >= 0).nonzero().squeeze(1)
        rest = {k: v for k, v in batch.items() if k not in ("labels", "border")}
        made = {"ids": ids, "segments": segments, "tokens": tokens, "masked": masked}
        return {**rest, **made, "targets": labels[masked].long()}

    def example(self, size: int, device: torch.device) -> Batch:
        """Return a batch of `size` full samples with arbitrary values."""
        config = self.config
        index = torch.arange(size, device=device)
        ids = torch.zeros(size, config.max_length, dtype=torch.int64, device=device)
        hidden = max(1, round(config.mask_probability * config.max_length))
        if config.max_predictions is not None:
            hidden = min(hidden, config.max_predictions)
        masked = torch.arange(size * hidden, device=device)
        example = {
            "ids": ids,
            "segments": torch.zeros_like(ids),
            "lengths": torch.full_like(index, config.max_length),
            "tokens": torch.arange(ids.numel(), device=device),
            "masked": masked,
            "targets": torch.zeros_like(masked),
            "index": index,
            "key": index,
        }
        return {**example, "is_random": index % 2} if config.next_sentence else example


def _adjacent(corpus: TextCorpus, index: int, stream: Stream) -> tuple[Ids, Ids, bool]:
    place = corpus.place(index)
    is_random = stream.uniform() < 0.5
    following = place.sentence + 1
    if is_random:
        first, end = _other_document(corpus, place.document, stream)
        following = first + stream.integer(end - first)
    return _sentences(corpus, place.sentence, 1), _sentences(corpus, following, 1), is_random


def _two_segments(
    corpus: TextCorpus, index: int, target: int, stream: Stream
) -> tuple[Ids, Ids, bool]:
    """Fill up to `target` tokens, at least two sentences, and cut between two of them."""
    place = corpus.place(index)
    count = _count_to(corpus, place.sentence, place.end, target, 2)
    in_first = 1 + stream.integer(count - 1)
    first = _sentences(corpus, place.sentence, in_first)
    if stream.uniform() >= 0.5:
        return first, _sentences(corpus, place.sentence + in_first, count - in_first), False
    start, end = _other_document(corpus, place.document, stream)
    start += stream.integer(end - start)
    count = _count_to(corpus, start, end, max(1, target - len(first)), 1)
    return first, _sentences(corpus, start, count), True


def _following(corpus: TextCorpus, index: int, target: int, least: int, stream: Stream) -> Ids:
    place = corpus.place(index)
    count = _count_to(corpus, place.sentence, place.end, target, least)
    return _sentences(corpus, place.sentence, count)


def _count_to(corpus: TextCorpus, sentence: int, end: int, target: int, least: int) -> int:
    """Return how many sentences from `sentence` on have `target` tokens, up to the document's."""
    starts = corpus.store.sentences[sentence + 1 : end + 1]
    wanted = int(corpus.store.sentences[sentence]) + target
    return min(len(starts), max(least, int(starts.searchsorted(wanted)) + 1))


def _sentences(corpus: TextCorpus, first: int, count: int) -> Ids:
    start, end = corpus.store.sentences[first], corpus.store.sentences[first + count]
    return corpus.store.tokens[start:end]


def _other_document(corpus: TextCorpus, document: int, stream: Stream) -> tuple[int, int]:
    """Draw a document other than `document` of the same split; return its sentences."""
    others = len(corpus.documents) - 1
    drawn = stream.integer(others)
    return corpus.document(drawn + (drawn >= document))


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return the lengths of two segments after tokens were taken from the longer one by one.

    Of equal ones the second gives.

    Args:
        first: Length of the first segment.
        second: Length of the second.
        room: What both may have together.
    """
    if first + second <= room:
        return first, second
    if second <= room // 2:
        return room - second, second
    if first <= (room + 1) // 2:
        return first, room - first
    return (room + 1) // 2, room // 2


def cut(segment: Ids, length: int, key: int) -> Ids:
    """Take tokens from the front or the back of a segment, each side with probability 0.5."""
    surplus = len(segment) - length
    if surplus <= 0:
        return segment
    front = int((bits_numpy(key, surplus) >> np.uint64(63)).sum())
    return segment[front : front + length]
