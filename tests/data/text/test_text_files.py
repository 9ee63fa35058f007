"""Finding text, telling its format, reading it as documents."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
from corpora import write_jsonl

from errors import refuses
from quadriga.data.text.files import find_text, format_of, read_documents

WIKI = """ \n = First title = \n \n One sentence . Another @-@ one of 2 @.@ 5 <unk> . \n
 = = Part = = \n \n A third . \n \n = Second = \n \n Alone . \n"""


def documents(path: Path, file_format=None, column="text") -> list[list[str]]:
    found: list[list[str]] = [[]]
    for sentence in read_documents(path, file_format or format_of(path), column):
        if sentence is None:
            found.append([])
        else:
            found[-1].append(sentence)
    return [document for document in found if document]


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_sentence_per_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "\ufeffOne is. two\r\n Three. \n\n\n\nFour.\n \nFive!")
    assert format_of(write(tmp_path / "b", "One.\nTwo.\n\nThree, or four?\n")) == "sentences"
    assert documents(path, "sentences") == [["One is. two", "Three."], ["Four."], ["Five!"]]


def test_running_text(tmp_path: Path) -> None:
    text = "A first sentence, which\ngoes on and\non. A second\none.\n\nA third.\n"
    path = write(tmp_path / "a.txt", text)
    assert format_of(path) == "raw"
    assert documents(path) == [
        ["A first sentence, which goes on and on.", "A second one.", "A third."]
    ]
    assert format_of(write(tmp_path / "b.txt", "One is. Two are. Three\n" * 20)) == "raw"


def test_headings_start_documents(tmp_path: Path) -> None:
    path = write(tmp_path / "wiki.txt", WIKI)
    assert format_of(path) == "raw"
    assert documents(path) == [
        ["One sentence .", "Another-one of 2.5 [UNK] .", "A third ."],
        ["Alone ."],
    ]


def test_jsonl(tmp_path: Path) -> None:
    rows = [{"text": "One. Two.\n\nThree"}, {"text": ["As. it", " is "]}, {"text": None}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert format_of(path) == "jsonl"
    assert documents(path) == [["One.", "Two.", "Three"], ["As. it", "is"]]
    named = write_jsonl(tmp_path / "b.jsonl", [{"body": "One."}])
    assert documents(named, column="body") == [["One."]]
    with refuses(named, "'text'", "line 1", "data.column"):
        documents(named)
    for bad in ("{", "[]", "3"):
        with refuses(tmp_path / "bad.jsonl", "JSON", "line 1"):
            documents(write(tmp_path / "bad.jsonl", bad))
    with refuses(tmp_path / "bad.jsonl", "line 1", "data.column"):
        documents(write_jsonl(tmp_path / "bad.jsonl", [{"text": 3}]))


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": ["One. Two.", None, "Three."], "number": [1, 2, 3]})
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path)
    assert format_of(path) == "parquet"
    assert documents(path) == [["One.", "Two."], ["Three."]]
    with refuses("data.column", path, "text, number", "body"):
        documents(path, column="body")
    with refuses(path, "row 1", "data.column"):
        documents(path, column="number")
    damaged = write(tmp_path / "b.parquet", path.read_bytes()[:-20])
    with refuses(damaged, "parquet"):
        documents(damaged)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.lib", None)
    with refuses(path, "pip install 'quadriga[parquet]'"):
        documents(path)


class Creator:
    """Must never be made anew from its pickle."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_refused_and_not_loaded(tmp_path: Path, protocol: int) -> None:
    path = write(tmp_path / "0.txt", pickle.dumps(Creator(), protocol))
    with refuses(path, "pickle", "data.root"):
        format_of(path)
    path.rename(tmp_path / "0")  # in a folder of such files, none of which is called text
    with refuses(tmp_path / "0", "pickle", "data.root"):
        find_text(tmp_path, (), "data.files")


@pytest.mark.parametrize(
    ("data", "fragments"),
    [
        (b"\x89HDF\r\n\x1a\n", ("HDF5", "data.root")),
        (b"\x1f\x8b\x08", ("gzip", "unpack")),
        (b"PK\x03\x04", ("zip", "unpack")),
        ("one".encode("utf-16"), ("UTF-8", "convert")),
    ],
)
def test_what_is_no_text_is_refused(
    tmp_path: Path, data: bytes, fragments: tuple[object, ...]
) -> None:
    with refuses(tmp_path / "a.txt", *fragments):
        format_of(write(tmp_path / "a.txt", data))


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"caf\xe9 is.\nnext.\n")
    assert documents(path, "sentences") == [["caf\ufffd is.", "next."]]


def test_files_are_found_in_order_and_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.jsonl", ".hidden/d.txt", "sub/.e.txt", "f.md", "v.txt"):
        write(tmp_path / name, "text")

    def names(*files: str, **options) -> list[str]:
        found = find_text(tmp_path, files, "data.files", **options)
        return [str(path.relative_to(tmp_path)) for path in found]

    assert names(leave_out=(tmp_path / "v.txt",)) == ["a.txt", "b.txt", "sub/c.jsonl"]
    assert names("f.md", "*.txt", "a.txt") == ["f.md", "a.txt", "b.txt", "v.txt"]
    assert names("**/*.jsonl") == ["sub/c.jsonl"]
    assert find_text(None, (str(tmp_path / "a*"),), "data.files") == [tmp_path / "a.txt"]
    assert find_text(tmp_path / "f.md", (), "data.files") == [tmp_path / "f.md"]
    with refuses("data.files", "g*"):
        names("g*")
    with refuses("data.root", tmp_path / "none", "data.root=FOLDER"):
        find_text(tmp_path / "none", (), "data.files")
    (tmp_path / "empty").mkdir()
    with refuses("data.root", ".jsonl", tmp_path / "empty", "data.files"):
        find_text(tmp_path / "empty", (), "data.files")
