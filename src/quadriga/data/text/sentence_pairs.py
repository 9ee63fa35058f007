"""Samples of masked language modelling: pairs of segments with masked tokens.

The masking follows Devlin et al., "BERT" (2019), sections 3.1 and A.1.
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
    """Choose each of `count` tokens with the same probability, at least one token.

    Args:
        count: Number of tokens, at least 1.
        probability: Probability of each token, independent of the others.
        limit: Largest number of chosen tokens, those with the lowest draws; None for no limit.
        key: The sample's key.

    Returns:
        int64 (chosen,) positions, ascending.
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
    """Choose each word, with all its tokens, with the same probability, at least one word.

    If no word fits into the limit, the first `limit` tokens of the word with the lowest draw are
    chosen.

    Args:
        starts: bool (count,): whether a token starts a word; the first token always does.
        probability: Probability of each word, and so of each token.
        limit: Largest number of chosen tokens: words are taken by ascending draw, and words that
            do not fit are left out; None for no limit.
        key: The sample's key.

    Returns:
        int64 (chosen,) positions of tokens, ascending.
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
    """Return the masked ids: 80 % ``[MASK]``, 10 % a random token, 10 % the original.

    Args:
        originals: (chosen,): the original ids.
        mask: The id of ``[MASK]``.
        vocabulary_size: Number of ids that a random token is drawn from.
        key: The sample's key.

    Returns:
        int64 (chosen,) ids.
    """
    draws = bits_numpy(fold(key, _REPLACE), len(originals))
    action = (draws >> _HALF).astype(np.int64)
    random = (((draws & _LOW) * np.uint64(vocabulary_size)) >> _HALF).astype(np.int64)
    return np.where(action < _EIGHTY, mask, np.where(action < _NINETY, random, originals))


_PAIR, _CUT = fold("pair of segments"), fold("truncation")

Ids = npt.NDArray[Any]


@final
class SentencePairsConfig(ViewsConfig):
    """``[CLS] A [SEP] B [SEP]`` with masked tokens.

    A starts with the sample's sentence. B follows it in the text, or with probability 0.5 is from
    another document of the split: first the document is drawn, then the sentence in it at which B
    starts, each with equal probabilities.
    """

    max_length: int = Field(128, ge=8, le=2**20)
    """Largest number of tokens of a sample, with the three special ones."""
    mask_probability: float = Field(0.15, gt=0, lt=1)
    """Probability that a token is to be predicted; in each sample at least one is. 80 % of those
    are replaced by ``[MASK]``, 10 % by a random token, 10 % are left as they are."""
    whole_word: bool = False
    """Whether either all pieces of a word are to be predicted, or none."""
    max_predictions: int | None = Field(None, ge=1, le=2**20)
    """Largest number of tokens to predict in a sample; none for no limit."""
    pairing: Literal["adjacent", "segments"] = "adjacent"
    """adjacent: A and B are one sentence each. segments: consecutive sentences up to `max_length`
    are divided between two sentences into A and B (the BERT paper)."""
    next_sentence: bool = True
    """Whether there is a B, and the task of predicting whether it follows A; else
    ``[CLS] A [SEP]`` of consecutive sentences."""
    short_probability: float = Field(0.1, ge=0, le=1)
    """segments: probability that a sample's target length is drawn from 2 to the longest."""
    padding: Literal["longest", "fixed"] = "longest"
    """longest: a micro-batch is as long as its longest sample, and ``tokens`` excludes padding.
    fixed: it has `max_length` columns, which all count as tokens: for schedules that need equal
    shapes."""

    def check(self, dataset: Dataset, split: Split, plan: StepPlan | None) -> None:
        """Check that the data are a corpus, with at least two documents if pairs need them.

        Raises:
            UserError: The data are not a corpus, or there is only one document.
        """
        if not isinstance(dataset, TextCorpus):
            raise UserError(
                "views.kind=sentence_pairs needs the documents of a corpus, but the data has none; "
                "set data.kind=text_corpus, or take another views.kind"
            )
        self.check_documents(dataset, split)

    def check_documents(self, corpus: TextCorpus, split: Split | None = None) -> None:
        """Check that a random second segment can be from another document than the first.

        Args:
            corpus: The corpus.
            split: The split of the corpus, for the message.

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
        """Return the transform, which is the same for both splits."""
        return SentencePairs(self)


@final
class SentencePairs(Transform):
    """Turns the number of a sentence into a row of ids, and a batch of rows into its tensors."""

    def __init__(self, config: SentencePairsConfig) -> None:
        """Keep the config."""
        self.config = config
        self._checked: TextCorpus | None = None

    def sample(self, record: TextRecord, key: int) -> Sample:
        """Assemble one sample.

        Returns:
            ``ids`` int32 (max_length,), padded with 0; ``labels`` int32 (max_length,): the original
            ids of the tokens to predict, -1 elsewhere; int64 (): ``border`` (the position at which
            B starts), ``lengths`` and, with `next_sentence`, ``is_random``.

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
        """Return A and B, cut to fit into `max_length`, and whether B is random."""
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
        """Trim the rows, and find the tokens and the tokens to predict.

        Returns:
            int64: ``ids`` and ``segments`` (batch, length); ``tokens`` (tokens,), positions in the
            flattened ids; ``masked`` and ``targets`` (predictions,), the positions in ``tokens``
            to predict and their original ids; and the other entries of the batch.
        """
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
    """Return A, B and whether B is random; A and B have about `target` tokens together."""
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
    """Return how many sentences reach `target` tokens, at least `least`, within the document."""
    starts = corpus.store.sentences[sentence + 1 : end + 1]
    wanted = int(corpus.store.sentences[sentence]) + target
    return min(len(starts), max(least, int(starts.searchsorted(wanted)) + 1))


def _sentences(corpus: TextCorpus, first: int, count: int) -> Ids:
    start, end = corpus.store.sentences[first], corpus.store.sentences[first + count]
    return corpus.store.tokens[start:end]


def _other_document(corpus: TextCorpus, document: int, stream: Stream) -> tuple[int, int]:
    """Draw another document of the split; return its first sentence and the end."""
    others = len(corpus.documents) - 1
    drawn = stream.integer(others)
    return corpus.document(drawn + (drawn >= document))


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return two segments' lengths after removing tokens, one by one, from the longer segment.

    Of segments of equal length, the second one loses a token.

    Args:
        first: Length of the first segment.
        second: Length of the second segment.
        room: Largest sum of the two lengths.
    """
    if first + second <= room:
        return first, second
    if second <= room // 2:
        return room - second, second
    if first <= (room + 1) // 2:
        return first, room - first
    return (room + 1) // 2, room // 2


def cut(segment: Ids, length: int, key: int) -> Ids:
    """Remove tokens from a segment, each from the front or the back with probability 0.5."""
    surplus = len(segment) - length
    if surplus <= 0:
        return segment
    front = int((bits_numpy(key, surplus) >> np.uint64(63)).sum())
    return segment[front : front + length]
