"""Where sentences end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.data.text.files import LONGEST, paragraphs, split_sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["It rains.", "We stay in.", "Why?", "Because!"],
        ["Dr. Smith met Mrs. Jones at St. Mary's.", "They spoke."],
        ["See e.g. Kant or Hume.", "Both are cited on p. 17 of vol. 3."],
        ["J. R. R. Tolkien wrote it.", "So he said."],
        ["H. gammarus is found there.", "H. americanus is not."],
        ['"Go!" he said.', '"Why?"', "Nobody knew."],
        ["He said no.", "Then he left."],
        ["It cost 3.5 million.", "In 1999. it was less."],
        ["Who?!", "You..."],
        ["What then ...", "Nothing ."],
        ["The weight is 6 kilograms ( 13 lb ) , and it bears claws .", "In life , it is blue ."],
        ['It is called " red . "', "The rest follows ."],
        ["He lives in the U.S. Army base.", "Here ends it."],
        ["Than I.", "The end."],
        ["It is plan b.", "At 5 a.m. Monday it ends."],
        ["今日は。", "明日も\uff01", "はい"],
        ["(One.)", "[Two.]", "Three."],
        ["No. 5 is alive.", "No."],
    ],
)
def test_sentences_end_where_they_should(sentences: list[str]) -> None:
    joined = ("" if sentences[0] == "今日は。" else " ").join(sentences)
    assert split_sentences(joined) == sentences


@given(st.text(alphabet="aB.!? \n\"')(…。Mr", max_size=80))
def test_nothing_but_white_space_is_lost(text: str) -> None:
    found = split_sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(sentence == " ".join(sentence.split()) and sentence for sentence in found)


def test_a_sentence_without_an_end_is_cut() -> None:
    found = split_sentences("word " * LONGEST)
    assert max(map(len, found)) <= LONGEST
    assert sum(len(sentence.split()) for sentence in found) == LONGEST


def test_paragraphs_join_lines_up_to_blank_ones() -> None:
    assert list(paragraphs(["a", "b", "", " ", "c"])) == ["a b", "c"]
    assert max(map(len, paragraphs(["x" * 100] * 10_000))) < 2 * LONGEST
