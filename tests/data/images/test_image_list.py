import pytest

from errors import refuses
from pictures import encoded, noise, write
from quadriga.config.base import construct
from quadriga.contracts import DatasetConfig
from quadriga.data.images.list import ImageListConfig


@pytest.fixture
def root(tmp_path):
    for i, name in enumerate(["b.jpg", "a cat.jpg", "deep/c.png", "d.jpg"]):
        kind = "PNG" if name.endswith("png") else "JPEG"
        write(tmp_path / "images" / name, encoded(noise(6, 7, seed=i), kind))
    return tmp_path / "images"


def entries(dataset, root):
    records = [dataset.read(i) for i in range(len(dataset))]
    return [(record.name.removeprefix(f"{root}/"), record.label) for record in records]


def test_a_flat_folder(root):
    config = ImageListConfig(root=root, holdout=0.5)
    parts = [entries(config.build(split), root) for split in ("train", "test")]
    names = ["a cat.jpg", "b.jpg", "d.jpg", "deep/c.png"]
    assert sorted(parts[0] + parts[1]) == [(name, None) for name in names]
    assert all(part == sorted(part) for part in parts)
    assert config.build("train").classes == ()


def listed(root, text, name="list.txt", **options):
    write(root / name, text.encode())
    return ImageListConfig(root=root, files=root / name, test_files=root / name, **options)


@pytest.mark.parametrize(
    ("text", "expected", "classes"),
    [
        ("b.jpg\na cat.jpg\n", [("b.jpg", None), ("a cat.jpg", None)], ()),
        ("\ufeffb.jpg 1\nd.jpg 0\n", [("b.jpg", 1), ("d.jpg", 0)], ("0", "1")),
        ("# comment\n\nb.jpg 2\na cat.jpg 0\n", [("b.jpg", 2), ("a cat.jpg", 0)], ("0", "1", "2")),
        ("b.jpg\tdog\na cat.jpg\tcat\r\n", [("b.jpg", 1), ("a cat.jpg", 0)], ("cat", "dog")),
        ("b.jpg\tbig dog\nd.jpg\tcat\n", [("b.jpg", 0), ("d.jpg", 1)], ("big dog", "cat")),
        ("b.jpg dog\ndeep/c.png cat\n", [("b.jpg", 1), ("deep/c.png", 0)], ("cat", "dog")),
        ("b.jpg 010\nd.jpg 2\n", [("b.jpg", 10), ("d.jpg", 2)], tuple(map(str, range(11)))),
    ],
)
def test_list_files(root, text, expected, classes):
    config = listed(root, text)
    for split in ("train", "test"):
        dataset = config.build(split)
        assert dataset.classes == classes
        assert entries(dataset, root) == expected


def test_test_labels_have_the_training_lists_places(root):
    write(root / "train.txt", b"b.jpg ape\nd.jpg cow\n")
    write(root / "test.txt", b"deep/c.png cow\n")
    config = ImageListConfig(root=root, files=root / "train.txt", test_files=root / "test.txt")
    assert entries(config.build("test"), root) == [("deep/c.png", 1)]
    assert config.build("test").classes == ("ape", "cow")


def test_only_test_images_listed(root):
    write(root / "test.txt", b"b.jpg\nd.jpg\n")
    config = ImageListConfig(root=root, test_files=root / "test.txt")
    assert entries(config.build("train"), root) == [("a cat.jpg", None), ("deep/c.png", None)]
    assert entries(config.build("test"), root) == [("b.jpg", None), ("d.jpg", None)]


def test_a_list_is_split_with_its_labels(root):
    write(root / "all.txt", b"".join(b"x%d.jpg %d\n" % (i, i // 3) for i in range(30)))
    config = ImageListConfig(root=root, files=root / "all.txt", holdout=0.4)
    parts = [config.build(split) for split in ("train", "test")]
    assert [len(part.classes) for part in parts] == [10, 10]
    names = [[int(part.name(i)[len(f"{root}/x") : -4]) for i in range(len(part))] for part in parts]
    assert sorted(names[0] + names[1]) == list(range(30))
    assert [n // 3 for n in names[1]] == list(range(10)), "one of the three of each class"
    for part, expected in zip(parts, names, strict=True):
        for i in range(len(part)):
            write(root / f"x{expected[i]}.jpg", b"bytes")
            assert part.read(i).label == expected[i] // 3


def test_it_survives_json(root):
    config = ImageListConfig(root=root, files=root / "list.txt")
    assert construct(DatasetConfig, config.as_dict()) == config


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (b"b.jpg 1\nd.jpg\n", ("line 2", "'d.jpg'")),
        (b"b.jpg\nd.jpg 1\n", ("line 2", "'d.jpg 1'")),
        (b"# nothing\n\n", ("lines",)),
        (b"\xff\xfe\x00", ("UTF-8",)),
    ],
)
def test_invalid_lists(root, text, fragments):
    write(root / "list.txt", text)
    with refuses("data.files", root / "list.txt", *fragments):
        ImageListConfig(root=root, files=root / "list.txt").build("train")


def test_other_user_errors(root, tmp_path):
    with refuses("data.files", root / "nowhere.txt"):
        ImageListConfig(root=root, files=root / "nowhere.txt").build("train")
    with refuses("data.root", tmp_path / "nowhere"):
        ImageListConfig(root=tmp_path / "nowhere").build("train")
    (tmp_path / "empty").mkdir()
    with refuses("data.root", "images", tmp_path / "empty"):
        ImageListConfig(root=tmp_path / "empty").build("train")
    write(root / "train.txt", b"b.jpg cat\nd.jpg dog\n")
    write(root / "test.txt", b"b.jpg cta\n")
    config = ImageListConfig(root=root, files=root / "train.txt", test_files=root / "test.txt")
    with refuses("data.test_files", "cta", "cat"):
        config.build("test")
    write(root / "all.txt", b"b.jpg\nd.jpg\na cat.jpg\ndeep/c.png\n")
    with refuses("data.test_files"):
        ImageListConfig(root=root, test_files=root / "all.txt").build("train")


def test_nothing_is_held_out_where_the_share_is_zero(root):
    write(root / "all.txt", b"b.jpg 1\nd.jpg 0\n")
    config = ImageListConfig(root=root, files=root / "all.txt", holdout=0)
    assert entries(config.build("train"), root) == [("b.jpg", 1), ("d.jpg", 0)]
    assert len(ImageListConfig(root=root, holdout=0).build("train")) == 4
    with refuses("data.holdout", "test"):
        config.build("test")
