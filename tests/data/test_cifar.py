"""CIFAR in all its published forms, and pickles that are none of them."""

from __future__ import annotations

import os
import pickle
from pickletools import genops

import numpy as np
import pytest
from cifar_files import COARSE, FINE, NAMES_10, cifar_10, cifar_100, images, pickled
from hypothesis import given
from hypothesis import strategies as st

from quadriga.contracts import DatasetConfig
from quadriga.data.cifar import CifarConfig
from quadriga.data.plain_pickle import NotPlain, read_plain
from quadriga.data.shifted_views import ShiftedViewsConfig
from quadriga.errors import UserError

FORMS = [("bin", 2), ("py", 2), ("py", 3)]


def assert_holds(data, pixels, labels):
    assert len(data) == len(labels) == len(pixels)
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        record = data.read(index)
        np.testing.assert_array_equal(record.data, image.transpose(1, 2, 0))
        assert record.data.dtype == np.uint8
        assert record.label == label
        assert record.name == data.name(index)


@pytest.mark.parametrize(("form", "python"), FORMS)
@pytest.mark.parametrize("inside", [False, True])
def test_cifar_10(tmp_path, form, python, inside):
    expected = cifar_10(tmp_path, form, python=python)
    root = next(tmp_path.iterdir()) if inside else tmp_path
    for split in ("train", "test"):
        data = CifarConfig(root=root).build(split)
        assert data.classes == tuple(NAMES_10)
        assert_holds(data, *expected[split])
    assert data.name(3).endswith("image 3")
    assert "test_batch" in data.name(0)


@pytest.mark.parametrize(("form", "python"), FORMS)
def test_cifar_100_at_both_levels(tmp_path, form, python):
    expected = cifar_100(tmp_path, form, python=python)
    for split in ("train", "test"):
        pixels, fine, coarse = expected[split]
        data = CifarConfig(root=tmp_path).build(split)
        assert data.classes == tuple(FINE)
        assert_holds(data, pixels, fine)
        data = CifarConfig(root=tmp_path, labels="coarse").build(split)
        assert data.classes == tuple(COARSE)
        assert_holds(data, pixels, coarse)


def test_an_image_reaches_the_batch_without_a_copy(tmp_path):
    cifar_10(tmp_path, "bin")
    data = CifarConfig(root=tmp_path).build("train")
    record = data.read(7)
    view = ShiftedViewsConfig().build("train").sample(record, 1)["image"]
    assert np.shares_memory(view, record.data)
    assert np.shares_memory(data.read(7).data, record.data)


def test_where_both_forms_are_the_binary_one_is_taken(tmp_path):
    cifar_10(tmp_path, "py")
    expected = cifar_10(tmp_path, "bin", count=2)
    assert_holds(CifarConfig(root=tmp_path).build("test"), *expected["test"])


def test_without_names_classes_are_numbers(tmp_path):
    cifar_10(tmp_path, "bin")
    (tmp_path / "cifar-10-batches-bin" / "batches.meta.txt").unlink()
    assert CifarConfig(root=tmp_path).build("test").classes == tuple("0123456789")


def test_the_config_round_trips(tmp_path):
    config = CifarConfig(root=tmp_path, labels="coarse")
    assert config.kind() == "cifar"
    assert DatasetConfig.from_dict(config.as_dict()) == config


def refusal(root, split="train", **values):
    with pytest.raises(UserError) as caught:
        CifarConfig(root=root, **values).build(split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals_say_what_is_wrong(tmp_path):
    assert "must hold the files of CIFAR-10 or CIFAR-100" in refusal(tmp_path)
    cifar_10(tmp_path, "bin")
    assert "labels must be fine for CIFAR-10" in refusal(tmp_path, labels="coarse")
    cifar_100(tmp_path, "py")
    assert "holds both" in refusal(tmp_path)


def test_damaged_binary_files_are_refused(tmp_path):
    cifar_10(tmp_path, "bin")
    folder = tmp_path / "cifar-10-batches-bin"
    path = folder / "data_batch_3.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert "12,291 bytes are no number of records of 3,073" in refusal(tmp_path)
    path.write_bytes(b"")
    assert "0 bytes" in refusal(tmp_path)
    path.write_bytes(b"\x0a" + data[1:])
    assert "labels of" in refusal(tmp_path)
    assert "below 10, but one is 10" in refusal(tmp_path)
    path.write_bytes(data)
    (folder / "batches.meta.txt").write_text("cat\ndog\n")
    assert "it names 2 classes, not 10" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"data": images(2, 0).reshape(2, -1)}, "it has no labels for each image"),
        ({"data": images(2, 0).reshape(2, -1), "labels": [1]}, "it has no labels for each image"),
        ({"data": images(2, 0).reshape(2, -1), "labels": [1, -1]}, "are no numbers of classes"),
        ({"data": images(2, 0).reshape(2, -1), "labels": [1, b"x"]}, "are no numbers of classes"),
        ({"data": images(2, 0).reshape(4, -1), "labels": [1] * 4}, "no array of 3,072 values"),
        ({"data": [1, 2], "labels": [1, 2]}, "no array of 3,072 values"),
        ({"data": np.zeros((2, 3072)), "labels": [1, 2]}, "array of the type b'f8', not uint8"),
        ([1, 2], "a list and no dictionary"),
        ({7: 1}, "a name that is int and no text"),
    ],
)
def test_other_pickles_are_refused(tmp_path, entries, message):
    cifar_10(tmp_path, "py")
    pickled(tmp_path / "cifar-10-batches-py" / "data_batch_1", entries)
    assert message in refusal(tmp_path)


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Stateful:
    def __init__(self):
        self.values = [1]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_in_a_pickle_is_run(tmp_path, protocol):
    cifar_10(tmp_path, "py")
    trap = tmp_path / "trap"
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(pickle.dumps({b"data": Malicious(trap), b"labels": [1]}, protocol))
    # It would run something: a call is among its operations.
    assert "REDUCE" in {operation.name for operation, _, _ in genops(path.read_bytes())}
    assert "must be a file of a published CIFAR archive" in refusal(tmp_path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "a call of os.system, at byte 0"),
        (b"cbuiltins\neval\n.", "a call of builtins.eval"),
        (b"}(U\x01ai__builtin__\neval\n.", "the instruction INST"),
        (b"(cnumpy\nndarray\no.", "the instruction OBJ"),
        (b"cnumpy\nndarray\n(K\x05tR.", "a call of something that is no function"),
        (b"K\x05(K\x05tR.", "a call of something that is no function"),
        (b"}(K\x05tR.", "a call of something that is no function"),
        (b"\x80\x02]K\x05b.", "an object with a state"),
        (b"\x80\x02}q\x00h\x01.", "a damaged pickle"),
        (b"\x80\x02}(K\x01u.", "a damaged pickle"),
        (b"\x80\x02K\x01K\x02s.", "a damaged pickle"),
        (b"\x80\x02\x85.", "a damaged pickle"),
        (b"\x80\x02}", "a damaged pickle"),
        (b"", "a damaged pickle"),
        (b"\xff", "a damaged pickle"),
        (b".", "a damaged pickle"),
        (b"Ppersistent\n.", "the instruction PERSID"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.", "the encoding 'hex'"),
        (
            b"}X\x01\x00\x00\x00acnumpy.core.multiarray\n_reconstruct\n)Rs.",
            "an array without values",
        ),
    ],
)
def test_other_instructions_are_refused(value, message):
    with pytest.raises(NotPlain) as caught:
        read_plain(value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_object_of_a_class_is_refused():
    for protocol in range(6):
        with pytest.raises(NotPlain):
            read_plain(pickle.dumps({"a": Stateful()}, protocol))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**31 - 1) | st.binary(min_size=1),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.tuples(inner, inner, inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcdefgh", min_size=1), PLAIN, max_size=5))
def test_plain_values_are_what_pickle_wrote(values):
    assert read_plain(pickle.dumps(values, protocol=2)) == values


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    try:
        found = read_plain(data)
    except NotPlain:
        return
    assert isinstance(found, dict)


def test_numpy_is_not_asked_to_unpickle():
    array = images(2, 1)[:, :, ::2]
    assert not array.flags.c_contiguous
    for made in (array, np.asfortranarray(array), np.ascontiguousarray(array)):
        found = read_plain(pickle.dumps({"data": made}, protocol=2))["data"]
        np.testing.assert_array_equal(found, array)
