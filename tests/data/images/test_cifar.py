"""CIFAR in all its published forms, and pickles that are none of them."""

from __future__ import annotations

import os
import pickle
from pickletools import genops

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_files import COARSE, FINE, NAMES_10, cifar_10, cifar_100, images, pickled
from errors import refuses
from quadriga.contracts import DatasetConfig
from quadriga.data.images.cifar import CifarConfig
from quadriga.data.parts.pickles import NotPlain, read_plain
from quadriga.data.views.shifts import ShiftedViewsConfig

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


def refusal(root, *fragments, split="train", **values):
    with refuses("data.", *fragments):
        CifarConfig(root=root, **values).build(split)


def test_refusals_say_what_is_wrong(tmp_path):
    refusal(tmp_path, "data.root", "cifar-10-batches-bin", "data.kind=image_folder")
    cifar_10(tmp_path, "bin")
    refusal(tmp_path, "data.labels", "fine", "coarse", labels="coarse")
    cifar_100(tmp_path, "py")
    refusal(tmp_path, "data.root", "both", "cifar-10-batches-bin", "set data.root=")


def test_damaged_binary_files_are_refused(tmp_path):
    cifar_10(tmp_path, "bin")
    folder = tmp_path / "cifar-10-batches-bin"
    path = folder / "data_batch_3.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    refusal(tmp_path, "data_batch_3.bin", "12,291", "3,073", "unpack")
    path.write_bytes(b"")
    refusal(tmp_path, "data_batch_3.bin", "0 bytes", "unpack")
    path.write_bytes(b"\x0a" + data[1:])
    refusal(tmp_path, "labels", "below 10", "is 10", "cifar-10-batches-bin", "unpack")
    path.write_bytes(data)
    (folder / "batches.meta.txt").write_text("cat\ndog\n")
    refusal(tmp_path, "batches.meta.txt", "2 classes", "10", "unpack")


@pytest.mark.parametrize(
    ("entries", "fragments"),
    [
        ({"data": images(2, 0).reshape(2, -1)}, ("no labels",)),
        ({"data": images(2, 0).reshape(2, -1), "labels": [1]}, ("no labels",)),
        ({"data": images(2, 0).reshape(2, -1), "labels": [1, -1]}, ("labels", "classes")),
        ({"data": images(2, 0).reshape(2, -1), "labels": [1, b"x"]}, ("labels", "classes")),
        ({"data": images(2, 0).reshape(4, -1), "labels": [1] * 4}, ("data", "3,072")),
        ({"data": [1, 2], "labels": [1, 2]}, ("data", "3,072")),
        ({"data": np.zeros((2, 3072)), "labels": [1, 2]}, ("b'f8'", "uint8", "byte 123")),
        ([1, 2], ("list", "dictionary")),
        ({7: 1}, ("int", "name")),
    ],
)
def test_other_pickles_are_refused(tmp_path, entries, fragments):
    cifar_10(tmp_path, "py")
    pickled(tmp_path / "cifar-10-batches-py" / "data_batch_1", entries)
    refusal(tmp_path, "data.root", "data_batch_1", "unpack", *fragments)


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
    refusal(tmp_path, "data_batch_2", "byte", "unpack")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("value", "fragments"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", ("os.system", "byte 0")),
        (b"cbuiltins\neval\n.", ("builtins.eval", "byte")),
        (b"}(U\x01ai__builtin__\neval\n.", ("INST", "byte")),
        (b"(cnumpy\nndarray\no.", ("OBJ", "byte")),
        (b"cnumpy\nndarray\n(K\x05tR.", ("call", "function")),
        (b"K\x05(K\x05tR.", ("call", "function")),
        (b"}(K\x05tR.", ("call", "function")),
        (b"\x80\x02]K\x05b.", ("object", "state")),
        (b"\x80\x02}q\x00h\x01.", ("damaged", "byte")),
        (b"\x80\x02}(K\x01u.", ("damaged", "byte")),
        (b"\x80\x02K\x01K\x02s.", ("damaged", "byte")),
        (b"\x80\x02\x85.", ("damaged", "byte")),
        (b"\x80\x02}", ("damaged", "byte")),
        (b"", ("damaged", "byte")),
        (b"\xff", ("damaged", "byte")),
        (b".", ("damaged", "byte")),
        (b"Ppersistent\n.", ("PERSID", "byte 0")),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.", ("encoding", "'hex'")),
        (
            b"}X\x01\x00\x00\x00acnumpy.core.multiarray\n_reconstruct\n)Rs.",
            ("array", "values"),
        ),
    ],
)
def test_other_instructions_are_refused(value, fragments):
    with refuses(*fragments, error=NotPlain):
        read_plain(value)


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
