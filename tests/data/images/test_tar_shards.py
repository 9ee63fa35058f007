import copy
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from errors import assert_says, refuses
from pictures import encoded, noise, write, write_tar
from quadriga.config.base import construct
from quadriga.contracts import DatasetConfig, UnreadableSample
from quadriga.data.images import tar_shards
from quadriga.data.images.folder import ImageFolderConfig
from quadriga.data.images.shard_names import expand_braces
from quadriga.data.images.tar_shards import TarShardsConfig
from quadriga.data.views.crops import ImageViewsConfig


def shard(count, start=0, label=lambda i: str(i % 3)):
    members = []
    for i in range(start, start + count):
        members.append((f"{i:06d}.jpg", encoded(noise(9, 11, seed=i))))
        members.append((f"{i:06d}.cls", label(i).encode()))
    return members


@pytest.fixture
def root(tmp_path):
    write_tar(tmp_path / "train-000.tar", shard(4))
    write_tar(tmp_path / "train-001.tar", shard(3, 4))
    write_tar(tmp_path / "val-000.tar", shard(2, 100))
    return tmp_path


def config_of(root, **options):
    return TarShardsConfig(
        root=root, **{"shards": "train-*.tar", "test_shards": "val-*.tar", **options}
    )


def contents(dataset):
    records = [dataset.read(i) for i in range(len(dataset))]
    return [(record.data, record.label) for record in records]


def test_records_are_the_members(root):
    dataset = config_of(root).build("train")
    expected = [(encoded(noise(9, 11, seed=i)), i % 3) for i in range(7)]
    assert contents(dataset) == expected
    assert dataset.classes == ("0", "1", "2")
    assert dataset.name(5) == f"{root}/train-001.tar/000005"
    assert [dataset.read(i).data for i in (6, 0, 3)] == [expected[i][0] for i in (6, 0, 3)]
    assert len(config_of(root).build("test")) == 2


def test_the_same_pixels_as_from_a_folder(root):
    for i in range(7):
        write(root / "files" / "train" / str(i % 3) / f"{i}.jpg", encoded(noise(9, 11, seed=i)))
    view = ImageViewsConfig(image_px=8).build("train")
    shards = config_of(root).build("train")
    folder = ImageFolderConfig(root=root / "files").build("train")
    by_place = {int(folder.name(i).rpartition("/")[2][:-4]): i for i in range(7)}
    for i in range(7):
        one = view.sample(shards.read(i), 5)
        other = view.sample(folder.read(by_place[i]), 5)
        np.testing.assert_array_equal(one["image"], other["image"])
        assert one["label"] == other["label"]


def test_samples_are_grouped_by_the_name_before_the_first_dot(tmp_path):
    image, other = encoded(noise(5, 5)), encoded(noise(5, 5, seed=1), "PNG")
    members = [
        ("a/x.cls", b"cat\n"),
        ("a/x.txt", b"a caption"),
        ("a/x.small.jpg", image),
        ("b/x.png", other),
        ("b/x.json", b'{"label": "dog", "more": [1]}'),
        ("only.txt", b"no image"),
        ("z" * 150 + ".jpg", image),
        (".hidden", b""),
        (os.fsdecode(b"caf\xe9.jpg"), image),
        ("caf.json", b'{"label": "a\\u0000b"}'),
        ("caf.jpg", image),
    ]
    write_tar(tmp_path / "s.tar", members)
    for _ in ("built", "loaded from its index file"):
        dataset = TarShardsConfig(root=tmp_path, shards="s.tar", test_shards="s.tar").build("train")
        assert dataset.classes == ("a\0b", "cat", "dog")
        expected = [(image, 1), (other, 2), (image, None), (image, None), (image, 0)]
        assert contents(dataset) == expected
        names = ["a/x", "b/x", "z" * 150, os.fsdecode(b"caf\xe9"), "caf"]
        assert list(dataset.keys()) == names


def test_braces_expand_as_in_a_shell():
    assert expand_braces("t-{008..011}.tar") == [f"t-{i:03d}.tar" for i in (8, 9, 10, 11)]
    assert expand_braces("{9..11}") == ["9", "10", "11"]
    assert expand_braces("{2..0}") == ["2", "1", "0"]
    assert expand_braces("{a,b}-{0..1}") == ["a-0", "a-1", "b-0", "b-1"]
    assert expand_braces("plain{}.tar") == ["plain{}.tar"]


def test_brace_patterns_and_folders(root):
    assert len(config_of(root, shards="train-{000..001}.tar").build("train")) == 7
    assert len(config_of(root, shards="{train-001,val-000}.tar").build("train")) == 5
    write_tar(root / "sub" / "x.tar", shard(1))
    assert len(config_of(root, shards="*/x.tar").build("train")) == 1


def test_without_test_shards_a_part_is_held_out(root):
    config = config_of(root, test_shards=None, holdout=0.5)
    parts = [contents(config.build(split)) for split in ("train", "test")]
    everything = contents(config_of(root).build("train"))
    assert 0 < len(parts[1]) < 7
    assert sorted(parts[0] + parts[1]) == sorted(everything)


def test_the_index_is_kept_and_made_anew_when_the_shard_changes(root, monkeypatch):
    built = []
    original = tar_shards.build
    monkeypatch.setattr(tar_shards, "build", lambda path: built.append(path.name) or original(path))
    before = contents(config_of(root).build("train"))
    assert contents(config_of(root).build("train")) == before
    assert built == ["train-000.tar", "train-001.tar"]
    write_tar(root / "train-001.tar", shard(5, 50))
    assert len(config_of(root).build("train")) == 9
    assert built == ["train-000.tar", "train-001.tar", "train-001.tar"]
    (root / "train-000.tar.index.npz").write_bytes(b"damaged")
    assert contents(config_of(root).build("train"))[:4] == before[:4]
    assert built[3:] == ["train-000.tar"]
    assert not [name for name in os.listdir(root) if name.startswith(".")]


def test_an_index_that_cannot_be_kept_is_told_once(root, monkeypatch, caplog):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tar_shards.tempfile, "mkstemp", refuse)
    dataset = config_of(root).build("train")
    assert len(contents(dataset)) == 7
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert_says(caplog.text, "train-000.tar", "Permission denied")


def test_an_interrupted_write_leaves_nothing(root, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tar_shards.os, "fsync", full)
    assert len(config_of(root).build("train")) == 7
    assert sorted(os.listdir(root)) == ["train-000.tar", "train-001.tar", "val-000.tar"]


def test_few_files_are_open_at_once(root, monkeypatch):
    monkeypatch.setattr(tar_shards, "_OPEN_FILES", 1)
    dataset = config_of(root).build("train")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    expected = contents(dataset)
    assert [dataset.read(i).data for i in (0, 6, 1, 5)] == [expected[i][0] for i in (0, 6, 1, 5)]
    if before:
        assert len(os.listdir("/proc/self/fd")) == before + 1
        dataset.close()
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_pickled_copy_reads_the_same(root):
    dataset = config_of(root).build("train")
    expected = contents(dataset)
    assert pickle.dumps(dataset)
    assert contents(copy.deepcopy(dataset)) == expected  # rebuilt in the same way


def test_a_shard_cut_off_after_indexing_is_unreadable(root):
    dataset = config_of(root).build("train")
    os.truncate(root / "train-000.tar", 600)
    with refuses("train-000.tar/000001", error=UnreadableSample):
        dataset.read(1)
    dataset.close()
    (root / "train-000.tar").unlink()
    with refuses("train-000.tar/000001", error=UnreadableSample):
        dataset.read(1)


def test_it_survives_json(root):
    assert construct(DatasetConfig, config_of(root).as_dict()) == config_of(root)


@pytest.mark.parametrize("keep", [10, 512, 700, -1024, -1500, 0])
def test_truncated_shards(root, keep):
    path = root / "train-001.tar"
    end = sum(512 + -(-len(data) // 512) * 512 for _, data in shard(3, 4))
    data = path.read_bytes()[: end + 1024]
    path.write_bytes(data[:keep])
    with refuses(root / "train-001.tar", "uncompressed", "copy"):
        config_of(root).build("train")


def test_a_damaged_header_is_not_the_end(root):
    path = root / "train-001.tar"
    data = bytearray(path.read_bytes())
    second = 512 + -(-len(shard(1, 4)[0][1]) // 512) * 512
    data[second : second + 100] = b"\xff" * 100
    path.write_bytes(bytes(data))
    with refuses(root / "train-001.tar", f"byte {second}", "copy"):
        config_of(root).build("train")


def compressed(root):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    write(root / "train-009.tar", buffer.getvalue())
    return {}, ("train-009.tar", "uncompressed")


def two_images(root):
    image = encoded(noise(4, 4))
    write_tar(root / "train-009.tar", [("a.jpg", image), ("a.png", image)])
    return {}, ("train-009.tar", "a.jpg", "a.png")


def bad_json(root):
    write_tar(root / "train-009.tar", [("a.json", b"{")])
    return {}, ("train-009.tar", "a.json", "JSON")


def bad_label(root):
    write_tar(root / "train-009.tar", [("a.cls", b"\xff")])
    return {}, ("train-009.tar", "a.cls", "UTF-8")


def no_match(root):
    return {"shards": "nope-*.tar"}, ("data.shards", "nope-*.tar", root)


def missing_shard(root):
    return {"shards": "train-{000..003}.tar"}, ("data.shards", "train-002.tar")


def no_images(root):
    write_tar(root / "text.tar", [("a.txt", b"x")])
    return {"shards": "text.tar"}, ("data.shards", "images", "text.tar")


def no_folder(root):
    return {"root": root / "nowhere"}, ("data.root", root / "nowhere", "data.root=FOLDER")


@pytest.mark.parametrize(
    "case",
    [compressed, two_images, bad_json, bad_label, no_match, missing_shard, no_images, no_folder],
)
def test_user_errors(root, case):
    options, fragments = case(root)
    with refuses(*fragments):
        config_of(**{"root": root, **options}).build("train")


def test_an_unknown_label_in_the_test_shards(root):
    write_tar(root / "val-000.tar", shard(1, label=lambda i: "7"))
    with refuses("data.test_shards", "'7'", root / "val-000.tar"):
        config_of(root).build("test")
