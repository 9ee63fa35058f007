"""The nine tasks' files: official layouts, and what real files have that theirs should not."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from errors import refuses
from glue_files import mnli, put, write_official, write_vocabulary
from quadriga.config.base import construct
from quadriga.contracts import DatasetConfig
from quadriga.data.parts.subsets import Subset
from quadriga.data.reading.loader import sequential
from quadriga.data.text.glue.dataset import GlueConfig
from quadriga.data.text.glue.tasks import TASKS, task_called, tasks_in
from quadriga.data.text.text_pairs import TextPairsConfig
from quadriga.distributed.environment import SINGLE


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_official(tmp_path)
    return tmp_path


EXPECTED = {
    "cola": ([1, 0, 1], ("the film",)),
    "sst2": ([1, 0, 1], ("good film ",)),
    "mrpc": ([1, 0, 1], ("the film", "a film")),
    "stsb": ([5.0, 0.25, 3.0], ("the film", "a film")),
    "qqp": ([1, 0] * 30 + [1], ("is the film good?", "good?")),
    "mnli": ([2, 1, 0], ("the film", "is bad")),
    "mnli-mm": ([2, 1, 0], ("the film", "is bad")),
    "qnli": ([0, 1, 0], ("the film 0", "is bad")),
    "rte": ([1, 0, 1], ("the film 0", "is bad")),
    "wnli": ([1, 0, 1], ("the film 0", "is bad")),
}


@pytest.mark.parametrize("task", TASKS)
def test_each_task_is_read_as_its_files_are_laid_out(root: Path, task: str) -> None:
    train = GlueConfig(root=root, task=task).build("train")
    dev = GlueConfig(root=root, task=task).build("test")
    labels, first = EXPECTED[task]
    assert train.labels_of(train).tolist() == labels
    assert train.row(0).texts == first
    assert len(dev) == (3 if task == "mnli-mm" else 2)
    assert train.classes == TASKS[task].labels
    kinds = {type(train.read(i).label) for i in range(len(train))}
    assert kinds == ({float} if task == "stsb" else {int})
    for part in TASKS[task].parts:
        tests = train.sibling("test", part)
        assert tests is not None
        assert [tests.row(i).index for i in range(len(tests))] == ["0", "1"]
        assert tests.read(0).label is None


def test_nothing_is_quoted(root: Path) -> None:
    assert GlueConfig(root=root, task="sst2").build("train").row(1).texts == ('a "bad film ',)
    assert GlueConfig(root=root, task="mrpc").build("train").row(1).texts[0] == 'the "plot'


def test_short_rows_are_counted_and_those_of_a_test_set_kept(root: Path) -> None:
    train = GlueConfig(root=root, task="qqp").build("train")
    assert (train.skipped.short, train.skipped.blank) == (2, 0)
    assert train.name(60).endswith("QQP/train.tsv line 64")
    tests = train.sibling("test", "")
    assert tests is not None
    assert tests.row(1).texts == ("short", "")


def test_blank_lines_odd_line_ends_and_no_last_line_feed(root: Path) -> None:
    rows = ["sentence\tlabel", "", "good\x85film\u2028the\rplot\t1", "   ", "bad\t0"]
    (root / "SST-2" / "train.tsv").write_text("\n".join(rows), newline="", encoding="utf-8")
    train = GlueConfig(root=root, task="sst2").build("train")
    assert [train.row(i).texts[0] for i in range(2)] == ["good\x85film\u2028the\rplot", "bad"]
    assert train.skipped.blank == 2
    assert train.name(1).endswith("line 5")


def test_headers_are_found_by_their_names(root: Path) -> None:
    put(root / "CoLA", "train.tsv", "source\tlabel\tstar\tsentence", "gj04\t0\t\tthe film")
    assert GlueConfig(root=root, task="cola").build("train").row(0).label == 0
    put(root / "RTE", "train.tsv", "index\tlabel\tsentence2\tsentence1", "0\tentailment\tb\ta")
    assert GlueConfig(root=root, task="rte").build("train").row(0).texts == ("a", "b")
    put(root / "SST-2", "train.tsv", "good\t1", "bad\t0")
    assert len(GlueConfig(root=root, task="sst2").build("train")) == 2


def test_labels_are_known_without_reading(root: Path) -> None:
    train = GlueConfig(root=root, task="rte").build("train")
    labels = train.labels()
    assert labels is not None
    assert labels.tolist() == [train.read(index).label for index in range(len(train))]
    assert GlueConfig(root=root, task="stsb").build("train").labels() is None
    tests = train.sibling("test", "")
    assert tests is not None
    assert tests.labels() is None


def test_names_of_tasks(root: Path) -> None:
    for name in ("SST-2", "sst2", "Sst_2"):
        assert GlueConfig(root=root, task=name).task == "sst2"
    assert task_called("STS-B").name == "stsb"
    assert task_called("MNLI-mm").name == "mnli-mm"
    with refuses("'mnl'", "mnli"):
        task_called("mnl")
    with refuses("task.task", "cola", "sst2", "'squad'"):
        construct(DatasetConfig, {"kind": "glue", "root": str(root), "task": "squad"})  # type: ignore[type-abstract]
    assert [task.name for task in tasks_in(root)] == [n for n in TASKS if n != "mnli-mm"]


def test_the_folder_may_be_the_tasks_own_or_called_otherwise(root: Path) -> None:
    vocabulary = root / "vocab.txt"
    assert len(GlueConfig(root=root / "RTE", task="rte", vocabulary=vocabulary).build("train")) == 3
    (root / "RTE").rename(root / "rte")
    assert len(GlueConfig(root=root, task="RTE").build("train")) == 3


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    (root / "MNLI" / "dev_matched.tsv").unlink()
    with refuses("data.root", "MNLI", root / "MNLI" / "dev_matched.tsv"):
        GlueConfig(root=root, task="mnli").build("test")
    with refuses("data.root", root / "none"):
        GlueConfig(root=root / "none", task="mnli").build("test")
    empty = tmp_path / "empty"
    write_vocabulary(empty)
    with refuses("data.root", "SST-2", "train.tsv", empty):
        GlueConfig(root=empty, task="sst2").build("train")
    (root / "vocab.txt").unlink()
    with refuses("data.vocabulary", "vocab.txt"):
        GlueConfig(root=root, task="cola").build("train")


def test_a_file_of_another_task_is_refused(root: Path) -> None:
    put(root / "RTE", "train.tsv", *(mnli(i, "neutral", several=False) for i in range(5)))
    with refuses(
        "train.tsv", "RTE", "column 2, 3", "entailment", "not_entailment", "5 rows", "data.task"
    ):
        GlueConfig(root=root, task="rte").build("train")
    (root / "RTE" / "train.tsv").write_bytes(b"index\tsentence1\tsentence2\tlabel\n0\t\xff\tb\t1\n")
    with refuses(root / "RTE" / "train.tsv", "UTF-8", "byte"):
        GlueConfig(root=root, task="rte").build("train")


def test_records_become_framed_samples(root: Path) -> None:
    train = GlueConfig(root=root, task="mrpc").build("train")
    sample = TextPairsConfig(max_length=10).build("train").sample(train.read(0), 0)
    tokens = (root / "vocab.txt").read_text().split("\n")
    framed = [tokens[i] for i in sample["ids"]]
    assert framed == "[CLS] the film [SEP] a film [SEP] [PAD] [PAD] [PAD]".split()
    assert sample["segments"].tolist() == [0] * 4 + [1] * 3 + [0] * 3
    assert (sample["lengths"], sample["label"]) == (7, 1)
    assert sample["label"].dtype == np.int64
    one = TextPairsConfig(max_length=5).build("test")
    single = one.sample(GlueConfig(root=root, task="sst2").build("train").read(1), 0)
    assert [tokens[i] for i in single["ids"]] == ["[CLS]", "a", '"', "bad", "[SEP]"]
    number = one.sample(GlueConfig(root=root, task="stsb").build("train").read(1), 0)["label"]
    assert (number.dtype, number) == (np.dtype(np.float32), 0.25)


@pytest.mark.parametrize("padding", ["longest", "fixed"])
def test_batches_hold_the_places_of_the_real_tokens(root: Path, padding: str) -> None:
    dataset = GlueConfig(root=root, task="qqp").build("train")
    views = TextPairsConfig(max_length=12, padding=padding).build("train")  # type: ignore[arg-type]
    example = views.example(2, torch.device("meta"))
    batches = sequential(dataset, views, range(5), batch_size=3, env=SINGLE, workers=0)
    for batch in batches:
        size, length = batch["ids"].shape
        assert length == (12 if padding == "fixed" else int(batch["lengths"].max()))
        real = torch.arange(length) < batch["lengths"][:, None]
        if padding == "longest":
            assert batch["tokens"].tolist() == real.flatten().nonzero()[:, 0].tolist()
        else:
            assert batch["tokens"].tolist() == list(range(size * length))
        assert not batch["ids"][~real].any()
        assert batch["label"].shape == (size,)
        assert batch["ids"].is_contiguous()
        assert {batch[name].dtype for name in example} == {torch.int64}
    assert example.keys() == batch.keys()
    assert example["tokens"].shape == (24,)


def test_a_dataset_goes_to_workers_and_has_parts(root: Path) -> None:
    train = GlueConfig(root=root, task="rte").build("train")
    before = [train.read(i) for i in range(3)]
    again = copy.deepcopy(train)
    assert [again.read(i) for i in range(3)] == before
    part = Subset(train, 2, seed=1)
    assert train.labels_of(part).tolist() == [part.read(i).label for i in range(2)]
    assert train.vocabulary_size == 18


SIZES = {"sst2": (67349, 872, 1821), "cola": (8551, 516, None), "rte": (2490, 277, None)}


@pytest.mark.parametrize("task", SIZES)
def test_real_files(shared_data: Path, tmp_path: Path, task: str) -> None:
    vocabulary = write_vocabulary(tmp_path)
    config = GlueConfig(root=shared_data / "glue", task=task, vocabulary=vocabulary)
    train, dev = config.build("train"), config.build("test")
    tests = dev.sibling("test", "")
    assert (len(train), len(dev), tests and len(tests)) == SIZES[task]
    assert train.skipped.rows == dev.skipped.rows == 0
    labels, count = np.unique(train.labels_of(train), return_counts=True)
    assert labels.tolist() == [0, 1]
    share = {"sst2": 0.5578, "cola": 0.7044, "rte": 0.4984}[task]
    assert count[1] / len(train) == pytest.approx(share, abs=1e-4)
    views = TextPairsConfig(max_length=64).build("train")
    batch = next(sequential(train, views, range(64), batch_size=64, env=SINGLE, workers=0))
    assert batch["lengths"].min() > 2
