import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import refuses
from pictures import encoded, noise, write, write_classes
from quadriga.config.base import construct, kinds
from quadriga.contracts import DatasetConfig, UnreadableSample
from quadriga.data.images.files import PackedNames, in_split
from quadriga.data.images.folder import ImageFolderConfig


def listing(dataset, root):
    """(path relative to root, label) of each record."""
    records = [dataset.read(i) for i in range(len(dataset))]
    for i, record in enumerate(records):
        assert record.name == dataset.name(i)
        assert record.data == Path(record.name).read_bytes()
    return [(os.path.relpath(r.name, root).replace(os.sep, "/"), r.label) for r in records]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"))))
def test_packed_names_are_the_list(names):
    packed = PackedNames(names)
    assert list(packed) == names
    assert packed[1:3] == names[1:3]
    assert len(packed) == len(names)
    if names:
        assert packed[-1] == names[-1]


def test_packed_names_end():
    with pytest.raises(IndexError):
        PackedNames(["a"])[1]


def test_file_names_that_are_not_utf8_survive():
    name = os.fsdecode(b"caf\xe9.jpg")
    assert PackedNames([name])[0] == name


def test_split_folders(tmp_path):
    write_classes(tmp_path / "train", ["dog", "cat"], 2)
    write_classes(tmp_path / "validation", ["cat", "dog"], 1, seed=900)
    write(tmp_path / "train" / "cat" / "deep" / "er" / "x.PNG", encoded(noise(5, 5), "PNG"))
    write(tmp_path / "train" / "cat" / "notes.txt", b"no image")
    write(tmp_path / "train" / "cat" / ".hidden.jpg", b"")
    config = ImageFolderConfig(root=tmp_path)
    train, test = config.build("train"), config.build("test")
    assert train.classes == test.classes == ("cat", "dog")
    assert listing(train, tmp_path / "train") == [
        ("cat/000.jpg", 0),
        ("cat/001.jpg", 0),
        ("cat/deep/er/x.PNG", 0),
        ("dog/000.jpg", 1),
        ("dog/001.jpg", 1),
    ]
    assert listing(test, tmp_path / "validation") == [("cat/000.jpg", 0), ("dog/000.jpg", 1)]


def test_a_class_without_test_images_keeps_the_labels(tmp_path):
    write_classes(tmp_path / "train", ["a", "b", "c"], 1)
    write_classes(tmp_path / "val", ["c"], 1)
    test = ImageFolderConfig(root=tmp_path).build("test")
    assert listing(test, tmp_path / "val") == [("c/000.jpg", 2)]


def test_without_split_folders_a_part_is_held_out(tmp_path):
    write_classes(tmp_path, ["x", "y"], 20)
    config = ImageFolderConfig(root=tmp_path, holdout=0.3)
    train, test = (listing(config.build(split), tmp_path) for split in ("train", "test"))
    everything = [(f"{c}/{i:03d}.jpg", label) for label, c in enumerate("xy") for i in range(20)]
    assert sorted(train + test) == everything
    assert len(test) == 12
    # The part of a file does not depend on other classes.
    write_classes(tmp_path, ["w"], 5)
    again = [name for name, _ in listing(config.build("test"), tmp_path)]
    assert [name for name in again if name[0] != "w"] == [name for name, _ in test]


@settings(deadline=None)
@given(st.floats(0.05, 0.95), st.lists(st.integers(0, 5), min_size=2, max_size=200))
def test_the_same_share_of_every_class_is_held_out(share, labels):
    names = [f"{i}.jpg" for i in range(len(labels))]
    counts = {c: labels.count(c) for c in set(labels)}
    wanted = {c: min(n - 1, max(1, math.floor(share * n + 0.5))) for c, n in counts.items()}
    if not sum(wanted.values()):
        with refuses("data.holdout", "test"):
            in_split(names, "test", share, labels)
        return
    test, train = (in_split(names, split, share, labels) for split in ("test", "train"))
    assert sorted([*test, *train]) == list(range(len(labels)))
    held = [labels[i] for i in test]
    assert {c: held.count(c) for c in counts} == wanted
    order = np.argsort(names)
    moved = in_split([names[i] for i in order], "test", share, [labels[i] for i in order])
    assert sorted(order[moved]) == list(test), "the order of the files does not matter"


def test_48_images_of_two_classes_are_held_out_alike(tmp_path):
    write_classes(tmp_path, ["cat", "dog"], 24, size=(4, 4))
    test = ImageFolderConfig(root=tmp_path).build("test")
    assert np.bincount(test.labels()).tolist() == [2, 2]


def test_unlabelled_folders(tmp_path):
    write_classes(tmp_path / "train", ["a", "b"], 1)
    write(tmp_path / "train" / "z.jpg", encoded(noise(5, 5)))
    dataset = ImageFolderConfig(root=tmp_path, labelled=False).build("train")
    assert dataset.classes == ()
    assert listing(dataset, tmp_path / "train") == [
        ("a/000.jpg", None),
        ("b/000.jpg", None),
        ("z.jpg", None),
    ]


def test_a_file_that_vanished_is_unreadable(tmp_path):
    write_classes(tmp_path / "train", ["a"], 1)
    dataset = ImageFolderConfig(root=tmp_path).build("train")
    (tmp_path / "train" / "a" / "000.jpg").unlink()
    with refuses("000.jpg", error=UnreadableSample):
        dataset.read(0)


def test_it_is_a_kind_and_survives_json(tmp_path):
    assert {"image_folder", "image_list", "tar_shards"} <= set(kinds(DatasetConfig))
    config = ImageFolderConfig(root=tmp_path)
    assert config.as_dict()["kind"] == "image_folder"
    assert construct(DatasetConfig, config.as_dict()) == config


def missing(root):
    return ImageFolderConfig(root=root / "trian"), ("trian", root / "train")


def a_file(root):
    return ImageFolderConfig(root=root / "train" / "a" / "000.jpg"), ("000.jpg", "folder")


def empty(root):
    (root / "nothing").mkdir()
    return ImageFolderConfig(root=root / "nothing"), ("images", root / "nothing")


def empty_unlabelled(root):
    (root / "nothing").mkdir()
    return ImageFolderConfig(root=root / "nothing", labelled=False), ("images", root / "nothing")


def classes_without_images(root):
    (root / "bare" / "train" / "a").mkdir(parents=True)
    return ImageFolderConfig(root=root / "bare"), ("images", root / "bare" / "train")


def no_classes(root):
    write(root / "flat" / "a.jpg", encoded(noise(4, 4)))
    return ImageFolderConfig(root=root / "flat"), ("data.kind=image_list", root / "flat")


def flat_training_folder(root):
    write(root / "half" / "train" / "a.jpg", encoded(noise(4, 4)))
    return ImageFolderConfig(root=root / "half"), ("data.kind=image_list", root / "half" / "train")


def no_training_folder(root):
    write_classes(root / "lone" / "val", ["a"], 1)
    return ImageFolderConfig(root=root / "lone"), ("data.train_split=NAME", root / "lone")


def tiny_holdout(root):
    write_classes(root / "few", ["a", "b"], 1)
    return ImageFolderConfig(root=root / "few"), ("data.holdout", "0.1", "2", "test")


@pytest.mark.parametrize(
    "case",
    [
        missing,
        a_file,
        empty,
        empty_unlabelled,
        classes_without_images,
        no_classes,
        flat_training_folder,
        no_training_folder,
        tiny_holdout,
    ],
)
def test_user_errors(tmp_path, case):
    write_classes(tmp_path / "train", ["a"], 1)
    config, fragments = case(tmp_path)
    split = "test" if case is tiny_holdout else "train"
    with refuses("data.", *fragments):
        config.build(split)


def test_errors_of_the_test_split(tmp_path):
    write_classes(tmp_path / "train", ["horse", "dog"], 1)
    with refuses("data.root", "val, validation, test", "data.test_split=NAME"):
        ImageFolderConfig(root=tmp_path).build("test")
    write_classes(tmp_path / "val", ["hores"], 1)
    with refuses("data.root", "hores", "horse"):
        ImageFolderConfig(root=tmp_path).build("test")
    write_classes(tmp_path / "mine", ["horse"], 1)
    assert len(ImageFolderConfig(root=tmp_path, test_split=("mine",)).build("test")) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    write_classes(tmp_path / "train", ["a"], 1)
    (tmp_path / "train" / "a").chmod(0)
    try:
        with refuses("data.root", tmp_path / "train" / "a"):
            ImageFolderConfig(root=tmp_path).build("train")
    finally:
        (tmp_path / "train" / "a").chmod(0o755)
