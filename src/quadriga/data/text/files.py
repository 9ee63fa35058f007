"""Text in files: finds them, detects their format and reads them as documents of sentences.

Text is split into sentences by rules. A sentence ends at ``.``, ``!``, ``?`` or ``…``, with closing
quotes and brackets, before white space that no lower-case letter follows. Titles, initials and
other abbreviations do not end a sentence. Chinese and Japanese full stops always end one.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from quadriga.data.images.files import check_folder
from quadriga.errors import UserError
from quadriga.files import parse_json

RULES = 1
"""Version of the rules; a change that alters sentences increments it, and text is then tokenised
again."""

LONGEST = 1 << 16
"""Characters after which a paragraph or a sentence without an end is cut."""

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
"""Quotes and brackets that may follow the end of a sentence."""

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
    if word is None:  # a separate full stop, in text that is already split into tokens
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
    """Join lines into paragraphs, which end at blank lines.

    Paragraphs also end after `LONGEST` characters, so that memory is bounded.
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


Format = Literal["sentences", "raw", "jsonl", "parquet"]

TEXT_SUFFIXES = frozenset((".txt", ".text", ".jsonl", ".ndjson", ".parquet"))
"""Lower-case suffixes of the files that are read in a folder; files given by name may have any."""

Sentences = Iterator[str | None]
"""Sentences in order; None ends a document."""

_LOOK = 1 << 16
_TRIED = 8
_HEADING = re.compile(r"^ ?= [^=].*[^=] = ?$|^ ?= [^=] = ?$")
_SUBHEADING = re.compile(r"^ ?= =.*= = ?$")
_JOINED = re.compile(r" @([-,.])@ ")
_REFUSED = {
    b"\x1f\x8b": "compressed (gzip)",
    b"\x28\xb5\x2f\xfd": "compressed (zstd)",
    b"BZh": "compressed (bzip2)",
    b"\xfd7zXZ": "compressed (xz)",
    b"PK\x03\x04": "a zip archive",
}


def find_text(
    root: Path | None, files: Sequence[str], key: str, leave_out: Sequence[Path] = ()
) -> list[Path]:
    """Return the files of a corpus without repetition: patterns in order, sorted within each.

    Args:
        root: The folder of the files; the only file; or None if `files` are whole paths.
        files: Paths or patterns (``part-*.txt``, ``**/*.parquet``), relative to `root`; none for
            every file below it with one of `TEXT_SUFFIXES`, except hidden ones.
        key: The config path of `files`, for error messages.
        leave_out: Files that are not text, such as the vocabulary.

    Raises:
        UserError: There are no such files.
    """
    skipped = {path.resolve() for path in leave_out}
    if root is not None and not root.is_file():
        check_folder(root, "data.root")
    if files:
        found = [path for pattern in files for path in _matches(root, pattern, key)]
    elif root is None:
        raise UserError(f"data.root or {key} must be set; name a folder with data.root=FOLDER")
    elif root.is_file():
        found = [root]
    else:
        found = [path for path in sorted(_below(root)) if path.resolve() not in skipped]
        if not found:
            for name in sorted(path for path in root.iterdir() if path.is_file())[:_TRIED]:
                format_of(name)  # raises if the file is of a kind that is never read
            raise UserError(
                f"data.root must hold text ({', '.join(sorted(TEXT_SUFFIXES))}), but there is none "
                f"in {root}; name other files with {key}"
            )
    return list(dict.fromkeys(found))


def _matches(root: Path | None, pattern: str, key: str) -> list[Path]:
    base = root.parent if root is not None and root.is_file() else root
    whole = pattern if base is None else os.path.join(base, pattern)
    if os.path.isfile(whole):
        return [Path(whole)]
    found = [Path(name) for name in sorted(glob.glob(whole, recursive=True))]
    found = [path for path in found if path.is_file()]
    if not found:
        raise UserError(f"{key} must name existing files, but there is none at {whole}; check it")
    return found


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in TEXT_SUFFIXES:
                yield Path(place, name)


def format_of(path: Path) -> Format:
    """Return a file's format, from its suffix or, for raw text or sentences, its first 64 KiB.

    Raises:
        UserError: The file cannot be read, or is of a kind that is never read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_LOOK)
    except OSError as error:
        raise UserError(f"the text {path} cannot be read: {error.strerror or error}") from error
    suffix = path.suffix.lower()
    if suffix == ".parquet" or head.startswith(b"PAR1"):
        return "parquet"
    _refuse(path, head)
    if suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    return "raw" if _is_raw(head.decode(errors="replace").split("\n")) else "sentences"


def _refuse(path: Path, head: bytes) -> None:
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise UserError(
            f"data must be text, but {path} is a pickle (as of a PretrainingDataCreator): loading "
            "one runs what is in it, so none is read; name the folder of the text files that it "
            "was made from with data.root"
        )
    if head.startswith(b"\x89HDF\r\n"):
        raise UserError(
            f"data must be text, but {path} is HDF5 (as of NVIDIA's prepared shards), which has "
            "masks and pairs already; name the text that it was made from with data.root"
        )
    for magic, name in _REFUSED.items():
        if head.startswith(magic):
            raise UserError(f"data must be text, but {path} is {name}; unpack it")
    if b"\x00" in head:
        raise UserError(f"data must be text in UTF-8, but {path} is not; convert it")


def _is_raw(lines: list[str]) -> bool:
    """Return whether lines are running text, and not one sentence each."""
    if any(_HEADING.match(line) for line in lines):
        return True
    lines = [line for line in lines[:-1] or lines if line.strip()]
    several = sum(len(split_sentences(line)) > 1 for line in lines)
    ended = sum(line.rstrip().rstrip(CLOSING).endswith((".", "!", "?")) for line in lines)
    # Few hard-wrapped lines end like sentences; lines that are paragraphs have several sentences.
    return several > 0.25 * len(lines) or ended < 0.5 * len(lines)


def read_documents(path: Path, file_format: Format, column: str) -> Sentences:
    """Read a file as documents of sentences.

    Bytes that are not UTF-8 become U+FFFD, which the tokenizer leaves out.

    Args:
        path: The file.
        file_format: See `format_of`.
        column: Key or column in JSONL and parquet: a document, or a list of its sentences.

    Raises:
        UserError: The file cannot be read, or a line or table is invalid.
    """
    try:
        if file_format == "parquet":
            yield from _parquet(path, column)
            return
        with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as lines:
            if file_format == "jsonl":
                yield from _jsonl(path, lines, column)
            elif file_format == "raw":
                yield from _raw(lines)
            else:
                yield from _one_a_line(lines)
    except OSError as error:
        raise UserError(f"the text {path} cannot be read: {error.strerror or error}") from error


def _one_a_line(lines: Iterator[str]) -> Sentences:
    for line in lines:
        text = line.strip()
        yield text[:LONGEST] if text else None
    yield None


def _raw(lines: Iterator[str]) -> Sentences:
    """Split paragraphs; wikitext headings start documents and are left out."""
    is_wiki = False
    held: list[str] = []
    for line in lines:
        is_heading = _HEADING.match(line.rstrip("\n")) is not None
        if is_heading or _SUBHEADING.match(line):
            yield from _split(held, is_wiki)
            held = []
            if is_heading:
                is_wiki = True
                yield None
            continue
        held.append(line)
        if not line.strip() or len(held) == 1000:
            yield from _split(held, is_wiki)
            held = []
    yield from _split(held, is_wiki)
    yield None


def _split(lines: list[str], is_wiki: bool) -> Sentences:
    for paragraph in paragraphs(lines):
        if is_wiki:  # WikiText's marks in numbers and compounds, and for rare words
            paragraph = _JOINED.sub(r"\1", paragraph).replace("<unk>", "[UNK]")
        yield from split_sentences(paragraph)


def _jsonl(path: Path, lines: Iterator[str], column: str) -> Sentences:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)[column]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"every line of {path} must be a JSON object with the text in {column!r}, but line "
                f"{number} is not; name another with data.column"
            ) from error
        yield from _document(value, f"{path}, line {number}")


def _parquet(path: Path, column: str) -> Sentences:
    try:
        import pyarrow.lib as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(
            f"{path} needs pyarrow; install it with: pip install 'quadriga[parquet]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise UserError(
                    f"data.column must be a column of {path} ({', '.join(names)}), but is {column}"
                )
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield from _document(value, f"{path}, row {number}")
    except arrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} must be a whole parquet file, but is not: {reason}") from error


def _document(value: object, where: str) -> Sentences:
    """Yield the sentences of one document, given as a text or as a list of sentences."""
    if isinstance(value, str):
        for paragraph in paragraphs(iter(value.split("\n"))):
            yield from split_sentences(paragraph)
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        yield from (item.strip()[:LONGEST] for item in value if item.strip())
    elif value is not None:
        raise UserError(f"{where}: data.column must be a text or a list of sentences, but is not")
    yield None
