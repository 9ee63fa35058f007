"""Corpora: what is in them, how they are split, and their cache."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from corpora import (
    LETTERS,
    TOKENS,
    corpus,
    decoded,
    sentence,
    vocabulary,
    write_corpus,
    write_jsonl,
)

from errors import assert_says, refuses
from quadriga.config.base import construct
from quadriga.contracts import DatasetConfig
from quadriga.data.text import corpus as text_corpus
from quadriga.data.text import store as text_cache
from quadriga.data.text import tokenise
from quadriga.data.text.corpus import TextCorpusConfig, in_split
from quadriga.data.text.store import StoreWriter, TokenStore

SIZES = (4, 3, 5, 1, 2)


def stores(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / ".quadriga").iterdir() if p.is_dir())


def test_documents_sentences_and_tokens(tmp_path: Path) -> None:
    found = corpus(tmp_path)
    assert decoded(found) == [[sentence(d, n) for n in range(size)] for d, size in enumerate(SIZES)]
    assert found.vocabulary_size == len(TOKENS)
    assert found.store.tokens.dtype == np.uint16
    assert len(found) == sum(SIZES) - len(SIZES)
    places = [found.place(i) for i in range(len(found))]
    assert [(p.document, p.sentence, p.end) for p in places] == [
        *((0, s, 4) for s in range(3)),
        *((1, s, 7) for s in (4, 5)),
        *((2, s, 12) for s in range(7, 11)),
        (4, 13, 15),
    ]
    assert found.name(5) == "text.txt, document 2, sentence 0"
    for index in (-1, len(found)):
        with pytest.raises(IndexError):
            found.read(index)


def test_sentences_without_tokens_are_left_out(tmp_path: Path) -> None:
    vocabulary(tmp_path)
    (tmp_path / "a.txt").write_text("a .\n\u200b\nb .\n\n\u200b\n\nc .\nd .\n")
    found = TextCorpusConfig(root=tmp_path, test_fraction=0, format="sentences").build("train")
    assert decoded(found) == [["a .", "b ."], ["c .", "d ."]]


def test_chunks_of_the_tokenizer_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decoded(corpus(tmp_path / "a"))
    for count in (1, 2, 3):
        monkeypatch.setattr(tokenise, "_SENTENCES", count)
        assert decoded(corpus(tmp_path / str(count))) == whole


def test_long_documents_are_cut(tmp_path: Path) -> None:
    found = corpus(tmp_path, sizes=(7, 2), document_sentences=3)
    assert [len(document) for document in decoded(found)] == [3, 3, 1, 2]


def test_several_files_and_formats(tmp_path: Path) -> None:
    write_corpus(tmp_path, sizes=(2,))
    (tmp_path / "sub").mkdir()
    write_jsonl(tmp_path / "sub" / "b.jsonl", [{"text": "a b. C d."}, {"text": ["x", "y"]}])
    found = TextCorpusConfig(root=tmp_path, test_fraction=0).build("train")
    assert decoded(found) == [["a b .", "c d ."], ["x", "y"], ["a .", "a a ."]]
    assert found.name(1) == "sub/b.jsonl, document 1, sentence 0"
    assert found.name(2) == "text.txt, document 0, sentence 0"


def many(folder: Path, order: int = 1) -> Path:
    """Write 400 documents, the last 40 of them equal to the first, in either order."""
    texts = [f"{LETTERS[n % 26]} {LETTERS[n // 26]} .\n{sentence(n, n)}\n" for n in range(360)]
    write_corpus(folder)
    (folder / "text.txt").write_text("\n".join([*texts, *texts[:40]][::order]))
    return folder


def test_documents_are_held_out_by_their_text(tmp_path: Path) -> None:
    config = TextCorpusConfig(root=many(tmp_path / "a"), test_fraction=0.2)
    train, test = decoded(config.build("train")), decoded(config.build("test"))
    assert len(train) + len(test) == 400
    assert 40 < len(test) < 120
    assert not {str(document) for document in train} & {str(document) for document in test}
    turned = TextCorpusConfig(root=many(tmp_path / "b", -1), test_fraction=0.2)
    assert decoded(turned.build("test")) == test[::-1]
    other = vocabulary(tmp_path, (*TOKENS, "other"))
    again = TextCorpusConfig(root=tmp_path / "a", vocabulary=other, test_fraction=0.2)
    assert decoded(again.build("test")) == test
    keys = config.build("train").store.keys
    smaller = set(in_split(keys, "test", 0.1).tolist())
    assert smaller < set(in_split(keys, "test", 0.2).tolist())


def test_files_of_the_test_split(tmp_path: Path) -> None:
    write_corpus(tmp_path, sizes=(3,))
    (tmp_path / "dev.txt").write_text("x .\ny .\n")
    config = TextCorpusConfig(root=tmp_path, test_files=("dev.txt",))
    assert decoded(config.build("test")) == [["x .", "y ."]]
    assert decoded(config.build("train")) == [["a .", "a a .", "a a a ."]]
    with refuses("data.test_files", tmp_path / "none.txt"):
        TextCorpusConfig(root=tmp_path, test_files=("none.txt",)).build("test")


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    write_corpus(tmp_path, sizes=(3,))
    with refuses("test split", "1 documents", "data.test_fraction"):
        TextCorpusConfig(root=tmp_path, test_fraction=0).build("test")


def test_what_a_config_needs(tmp_path: Path) -> None:
    values = {"kind": "text_corpus", "vocabulary": "v"}
    with refuses("root", "data.root=FOLDER"):
        construct(DatasetConfig, values)
    with refuses("data.vocabulary", "data.root", "quadriga tokenizer train"):
        TextCorpusConfig(files=("a.txt",)).build("train")
    (tmp_path / "a.txt").write_text("a .\nb .\n")
    with refuses("data.vocabulary", tmp_path / "vocab.txt", "quadriga tokenizer train"):
        TextCorpusConfig(root=tmp_path).build("train")
    found = construct(DatasetConfig, {**values, "files": "a.txt,b*"})
    assert isinstance(found, TextCorpusConfig)
    assert found.files == ("a.txt", "b*")


# The cache


def counting(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> list[Path]:
    made: list[Path] = []

    def tokenise_and_count(folder: Path, *rest) -> None:
        made.append(folder)
        time.sleep(seconds)
        tokenise.tokenise(folder, *rest)

    monkeypatch.setattr(text_corpus, "tokenise", tokenise_and_count)
    return made


def test_text_is_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counting(monkeypatch)
    first = decoded(corpus(tmp_path / "a"))
    config = TextCorpusConfig(root=tmp_path / "a", test_fraction=0)
    assert decoded(config.build("train")) == first
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # copies keep times, as a move does
    assert decoded(TextCorpusConfig(root=tmp_path / "b", test_fraction=0).build("train")) == first
    assert len(made) == 1
    assert made[0].parent == tmp_path / "a" / ".quadriga"


def test_what_changes_the_tokens_makes_them_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = counting(monkeypatch)
    corpus(tmp_path)
    config = TextCorpusConfig(root=tmp_path, test_fraction=0)
    config.override({"lowercase": False}).build("train")
    config.override({"document_sentences": 2}).build("train")
    config.override({"test_fraction": 0.5}).build("train")  # another split of the same tokens
    assert len(made) == 3
    vocabulary(tmp_path, (*TOKENS, "new"))
    config.build("train")
    assert len(made) == 4
    text = tmp_path / "text.txt"
    before = text.stat()
    text.write_text(text.read_text().replace("a", "z"))
    os.utime(text, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time
    assert decoded(config.build("train"))[0][0] == "z ."
    assert len(made) == len(set(made)) == 5


@pytest.mark.parametrize("name", ["tokens", "sentences", "documents", "keys"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, name: str, damage: str) -> None:
    first = decoded(corpus(tmp_path))
    path = stores(tmp_path)[0] / f"{name}.bin"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    assert decoded(TextCorpusConfig(root=tmp_path, test_fraction=0).build("train")) == first
    assert path.read_bytes() == data


@pytest.mark.parametrize("header", ["", "{", "[]", '{"version": 0}', '{"version": 1}'])
def test_a_damaged_header_is_made_anew(tmp_path: Path, header: str) -> None:
    first = decoded(corpus(tmp_path))
    path = stores(tmp_path)[0] / "header.json"
    whole = path.read_text()
    path.write_text(header)
    assert decoded(TextCorpusConfig(root=tmp_path, test_fraction=0).build("train")) == first
    assert path.read_text() == whole


def test_a_header_makes_no_objects(tmp_path: Path) -> None:
    corpus(tmp_path)
    path = stores(tmp_path)[0] / "header.json"
    header = json.loads(path.read_text())
    header["arrays"]["keys"]["dtype"] = "O"
    path.write_text(json.dumps(header))
    assert text_corpus.open_store(path.parent) is None


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUADRIGA_CACHE", str(tmp_path / "cache"))
    write_corpus(tmp_path / "text")
    (tmp_path / "text" / ".quadriga").write_text("no folder")
    config = TextCorpusConfig(root=tmp_path / "text", test_fraction=0)
    assert config.build("train").store.folder.parent == tmp_path / "cache"


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StoreWriter, "finish", full)
    with refuses("No space left on device", "QUADRIGA_CACHE"):
        corpus(tmp_path)
    assert [p.suffix for p in (tmp_path / ".quadriga").iterdir()] == [".lock"]


def test_another_process_was_faster_on_a_disk_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    def busy(source: Path, target: Path) -> None:
        rename(source, target)
        raise OSError(39, "Directory not empty")

    rename = os.replace
    monkeypatch.setattr(text_cache.fcntl, "flock", no_locks)
    assert len(corpus(tmp_path / "a")) == 10
    monkeypatch.setattr(os, "replace", busy)
    assert len(corpus(tmp_path / "b")) == 10


def test_what_was_left_half_made_is_removed(tmp_path: Path) -> None:
    corpus(tmp_path)
    store = stores(tmp_path)[0]
    store.rename(store.parent / f".{store.name}.left")
    TextCorpusConfig(root=tmp_path, test_fraction=0).build("train")
    assert stores(tmp_path) == [store]


def test_ranks_that_start_at_once_tokenise_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path)
    made = counting(monkeypatch, seconds=0.5)
    monkeypatch.setattr(text_cache, "_PATIENCE", 0.1)
    config = TextCorpusConfig(root=tmp_path, test_fraction=0)
    # The lock is of the open file: threads exclude one another as processes do.
    with ThreadPoolExecutor(3) as ranks:
        found = list(ranks.map(lambda _: len(config.build("train")), range(3)))
    assert found == [10, 10, 10]
    assert len(made) == 1
    assert_says(capsys.readouterr().err, "waiting", tmp_path)


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    config = TextCorpusConfig(root=tmp_path, test_fraction=0)
    store = config.build("train").store.folder
    shutil.rmtree(store)
    words = [sys.executable, "-c", HOLD, str(store.with_name(f".{store.name}.lock"))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with ThreadPoolExecutor(1) as rank:
            building = rank.submit(config.build, "train")
            with pytest.raises(TimeoutError):
                building.result(timeout=0.5)
            holder.kill()
            assert len(building.result(timeout=20)) == 10


def test_a_corpus_travels_as_names(tmp_path: Path) -> None:
    found = corpus(tmp_path, sizes=(300,))
    assert len(pickle.dumps(found)) < 20_000 < found.store.tokens.nbytes
    assert decoded(copy.deepcopy(found)) == decoded(found)  # rebuilt in the same way


def test_many_ids_need_more_bits(tmp_path: Path) -> None:
    tokens = (*TOKENS, *(f"w{n}" for n in range(70_000)))
    (tmp_path / "text.txt").write_text("w69999 a\nw65535 w1\n")
    path = vocabulary(tmp_path, tokens)
    config = TextCorpusConfig(root=tmp_path, vocabulary=path, test_fraction=0, format="sentences")
    found = config.build("train")
    assert found.store.tokens.dtype == np.uint32
    assert [tokens[i] for i in found.store.tokens] == ["w69999", "a", "w65535", "w1"]


def test_memory_maps_are_read_only(tmp_path: Path) -> None:
    found = corpus(tmp_path)
    assert isinstance(found.store, TokenStore)
    with refuses("read-only", error=ValueError):
        found.store.tokens[0] = 1
