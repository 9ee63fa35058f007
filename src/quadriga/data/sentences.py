"""From text to sentences, by rules.

A sentence ends at ``.``, ``!``, ``?`` or ``…``, with closing quotes and brackets, before white
space and what a sentence may start with: no lower-case letter. Titles, initials and other
abbreviations do not end one. Chinese and Japanese full stops end one wherever they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

RULES = 1
"""Counts up when sentences come out otherwise than before: tokenised text is then made anew."""

LONGEST = 1 << 16
"""Characters after which a paragraph or a sentence without an end is cut all the same."""

_ABBREVIATIONS = frozenset(
    """
    mr mrs ms messrs dr prof st mt rev hon gen col maj capt cmdr lt sgt cpl pvt adm gov sen rep
    pres supt det fr sr jr bros mme mlle cf vs v viz i.e e.g al approx ca c est dept univ ave blvd
    jan feb mar apr jun jul aug sep sept oct nov dec
    """.split()
)
_BEFORE_NUMBERS = frozenset(
    "no nos fig figs eq eqs sec secs ch chap vol vols p pp art par op cap".split()
)

CLOSING = "\"'\u201d\u2019\u00bb)]"
"""Quotes and brackets that may stand between the end of a sentence and what follows."""

_CLOSE = f"[{re.escape(CLOSING)}]"
_FULL_WIDTH = "[\u3002\uff01\uff1f]+[\u201d\u2019\u300d\u300f\uff09]*"
_END = re.compile(rf"(?:[.!?…]+{_CLOSE}*(?:\s{_CLOSE}+(?=\s))?)(\s+)|({_FULL_WIDTH})")
_LAST_WORD = re.compile(r"""(\S+)$""")
_LETTERS = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]$")
_OPENING = "\"'\u201c\u2018\u00ab([\u00bf\u00a1`*_-"


def split_sentences(paragraph: str) -> list[str]:
    """Split a paragraph, given as one line or several, into sentences without line breaks.

    Args:
        paragraph: Text of any length; runs of white space become one space.
    """
    text = " ".join(paragraph.split())
    found: list[str] = []
    start = 0
    for match in _END.finditer(text):
        end = match.end(2) if match.group(2) else match.start(1)
        if end <= start or not _ends(text, start, match):
            continue
        found.append(text[start:end])
        start = match.end()
    found.append(text[start:])
    return [piece for sentence in found for piece in _cut(sentence.strip()) if piece]


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    """Return whether a sentence ends at a match of `_END`."""
    if match.group(2):
        return True
    ahead = text[match.end() : match.end() + 8]
    following = (ahead.lstrip(_OPENING + " ") or ahead)[:1]
    if following.islower():
        return False
    if text[match.start()] != "." or text[match.start() + 1 : match.start() + 2] in ".!?…":
        return True
    word = _LAST_WORD.search(text[max(start, match.start() - 24) : match.start()])
    if word is None:  # a full stop that stands alone, in text that is split into tokens
        return True
    last = word.group(1).lstrip(_OPENING)
    known = last.lower() in _ABBREVIATIONS or (
        following.isdigit() and last.lower() in _BEFORE_NUMBERS
    )
    is_initial = len(last) == 1 and last.isupper() and last != "I"
    return not (known or is_initial or _LETTERS.match(last))


def _cut(sentence: str) -> Iterator[str]:
    while len(sentence) > LONGEST:
        at = sentence.rfind(" ", LONGEST // 2, LONGEST)
        at = LONGEST if at < 0 else at
        yield sentence[:at]
        sentence = sentence[at:].lstrip()
    yield sentence


def paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Join lines into paragraphs, which blank lines end.

    Paragraphs end after `LONGEST` characters too, so that memory is bounded.
    """
    held: list[str] = []
    size = 0
    for line in lines:
        if line.strip():
            held.append(line)
            size += len(line)
        if held and (not line.strip() or size > LONGEST):
            yield " ".join(held)
            held, size = [], 0
    if held:
        yield " ".join(held)
