"""CIFAR in all its published forms, and pickles that are none of them."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pickle import UnpicklingError
from pickletools import genops

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_files import COARSE, FINE, NAMES_10, cifar_10, cifar_100, images, pickled
from errors import assert_says, refuses
from quadriga.contracts import DatasetConfig
from quadriga.data.images.cifar import CifarConfig
from quadriga.data.parts.pickles import read_plain
from quadriga.data.views.shifts import ShiftedViewsConfig
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
        ({"data": np.zeros((2, 3072)), "labels": [1, 2]}, ("uint8",)),
        ({"data": np.zeros((2, 3072), object), "labels": [1, 2]}, ("uint8",)),
        ({"data": images(2, 0).reshape(2, -1), "labels": [1, 2**70]}, ()),
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
    refusal(tmp_path, "data.root", "data_batch_2", "unpack")
    assert not trap.exists()


MANY = 200_000
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R"
TYPE = b"cnumpy\ndtype\nU\x02u1\x85R"


def doubled(empty: bytes, pair: bytes) -> bytes:
    """A mark and a hundred values, each of which holds the one before it twice."""
    return b"(" + empty + b"q\x00" + b"".join(pair % (i, i, i + 1) for i in range(100))


@pytest.mark.parametrize(
    "value",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n.",
        b"cnumpy\nload\n.",
        b"\x80\x04}\x8c\x01a\x8c\x02os\x8c\x06system\x93s.",
        b"}(U\x01ai__builtin__\neval\n.",
        b"(cnumpy\nndarray\no.",
        b"cnumpy\nndarray\n(K\x05tR.",
        b"K\x05(K\x05tR.",
        b"}(K\x05tR.",
        b"}U\x01aK\x01sK\x05b.",
        b"\x80\x02]K\x05b.",
        b"\x80\x02}q\x00h\x01.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02K\x01K\x02s.",
        b"\x80\x02\x85.",
        b"\x80\x02}",
        b"\x80\xff}.",
        b"",
        b"\xff",
        b".",
        b"Ppersistent\n.",
        b"}U\x01aU\x01bQs.",
        b"\x80\x02}U\x01a\x82\x01s.",
        b"}U\x01ac_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextRs.",
        b"}U\x01ac_codecs\nencode\n(X\x02\x00\x00\x00\xc4\x80X\x06\x00\x00\x00latin1tRs.",
        b"}U\x01a" + ARRAY + b"s.",
        b"}U\x01a" + ARRAY + b"(K\x01K\x02\x85K\x05\x89U\x02xytbs.",
        b"}U\x01a" + ARRAY + b"(K\x01K\x03\x85" + TYPE + b"\x89U\x02xytbs.",
        b"}U\x01a"
        + ARRAY
        + b"(K\x01"
        + b"J\xff\xff\xff\x7f" * 3
        + b"\x87"
        + TYPE
        + b"\x89U\x01xtbs.",
        b"}U\x01acnumpy\ndtype\nU\x02O8\x85Rs.",
        b"}U\x01a" + doubled(b"]", b"](h%ch%ceq%c") + b"cnumpy\ndtype\nh\x64\x85Rts.",
        b"}" + doubled(b")", b"(h%ch%ctq%c") + b"tK\x01s.",
        b"})" + b"\x85" * MANY + b"K\x01s.",
        b"(" * MANY,
        b"}U\x01aT\xff\xff\xff\x7fx.",
        b"}U\x01aT\xff\xff\xff\xffx.",
        b"}U\x01aB\xff\xff\xff\xffx.",
        b"}U\x01aX\xff\xff\xff\xffx.",
        b"}U\x01a\x8e" + b"\xff" * 7 + b"\x7fx.",
        b"}U\x01a\x96" + b"\xff" * 7 + b"\x7fx.",
        b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f}.",
        b"}U\x01a\x8b\xff\xff\xff\x7fs.",
        b"}U\x01aL" + b"9" * MANY + b"L\ns.",
    ],
)
def test_hostile_pickles_are_refused(value):
    with pytest.raises(UnpicklingError) as caught:
        read_plain(value)
    assert_says(str(caught.value), "uint8", "byte")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "value",
    [
        b"}U\x01a" + doubled(b"]", b"](h%ch%ceq%c") + b"ts.",
        b"}U\x01a" + b"]" * MANY + b"a" * (MANY - 1) + b"s.",
        b"}U\x01a)" + b"\x85" * MANY + b"s.",
        b"}U\x01a" * MANY + b"}" + b"s" * MANY + b".",
        b"}r\xff\xff\xff\xffU\x01aK\x01s.",
    ],
)
def test_nothing_is_made_that_is_larger_than_the_file(value, tmp_path):
    """Lists in lists, and places in the memo: what is no array or text is not looked at."""
    tracemalloc.start()
    try:
        assert list(read_plain(value)) == ["a"]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000 + 500 * len(value)
    finally:
        tracemalloc.stop()
    cifar_10(tmp_path, "py")
    for name, key in (("data_batch_2", b"labels"), ("batches.meta", b"label_names")):
        text = b"U" + bytes([len(key)]) + key
        path = tmp_path / "cifar-10-batches-py" / name
        before = path.read_bytes()
        path.write_bytes(value.replace(b"U\x01a", text, 1))
        refusal(tmp_path, "data.root", name, "unpack")
        path.write_bytes(before)


def test_what_a_pickle_may_call_is_not_changed_by_it():
    """BUILD sets attributes of what a global gave."""
    entries = {b"a": b"\xff"}
    for state in (b"}U\x01aK\x01s", b"N}X\x0c\x00\x00\x00__defaults__)s\x86"):
        value = b"(c_codecs\nencode\n" + state + b"b0t."
        with pytest.raises(UnpicklingError):
            read_plain(value)
    assert read_plain(pickle.dumps(entries, protocol=2)) == {"a": b"\xff"}


def test_an_object_of_a_class_is_refused():
    for protocol in range(6):
        with pytest.raises(UnpicklingError):
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
    except UnpicklingError:
        return
    assert isinstance(found, dict)


@pytest.fixture(scope="module", params=[2, 3])
def batch(request, tmp_path_factory):
    """A dataset of which one file is to be changed, and that file's bytes."""
    root = tmp_path_factory.mktemp("mutated")
    cifar_10(root, "py", python=request.param)
    path = root / "cifar-10-batches-py" / "data_batch_3"
    return root, path, path.read_bytes()


@given(st.data())
def test_a_mutated_batch_is_read_or_refused(batch, data):
    root, path, good = batch
    mutated = bytearray(good)
    payload = {"pixels": (300, len(good) - 1), "any": (0, len(good) - 1), "start": (0, 300)}
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.one_of(*(st.integers(*bounds) for bounds in payload.values())))
        mutated[place] = data.draw(st.integers(0, 255))
    del mutated[data.draw(st.sampled_from([len(good), 300, len(good) - 1])) :]
    path.write_bytes(mutated)
    try:
        found = CifarConfig(root=root).build("train")
    except UserError as error:
        assert mutated != good
        assert_says(str(error), "data.root", "unpack")
        return
    path.write_bytes(good)
    same = CifarConfig(root=root).build("train")
    assert len(found) == len(same) == 20
    changed = [i for i in range(20) if (found.read(i).data != same.read(i).data).any()]
    assert mutated != good or not changed
    assert set(changed) <= set(range(8, 12))
    assert found.read(9).data.dtype == np.uint8


def test_numpy_is_not_asked_to_unpickle():
    array = images(2, 1)[:, :, ::2]
    assert not array.flags.c_contiguous
    for made in (array, np.asfortranarray(array), np.ascontiguousarray(array)):
        found = read_plain(pickle.dumps({"data": made}, protocol=2))["data"]
        np.testing.assert_array_equal(found, array)
