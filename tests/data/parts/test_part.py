"""Class-balanced parts, and the labels that they are chosen by."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_files import cifar_10
from errors import refuses
from pictures import encoded, noise, write_classes, write_tar
from quadriga.contracts import DatasetConfig
from quadriga.data.images.cifar import CifarConfig
from quadriga.data.images.clutter import ClutterConfig
from quadriga.data.images.digits import DigitsConfig
from quadriga.data.images.folder import ImageFolderConfig
from quadriga.data.images.tar_shards import TarShardsConfig
from quadriga.data.parts.subsets import PartConfig, Selection, balanced_part
from quadriga.data.shapes.dataset import ShapesConfig

LABELS = st.lists(st.integers(-1, 5), max_size=60).map(lambda x: np.array(x, np.int64))
FRACTIONS = st.floats(0.01, 1)


@settings(max_examples=50)
@given(labels=LABELS, fraction=FRACTIONS, seed=st.integers(0, 3))
def test_every_class_keeps_its_share(labels, fraction, seed):
    chosen = balanced_part(labels, fraction, seed)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    for name in np.unique(labels):
        whole, kept = (labels == name).sum(), (labels[chosen] == name).sum()
        assert kept == max(1, round(fraction * whole))
        assert math.isclose(kept, fraction * whole, abs_tol=0.5) or kept == 1


@settings(max_examples=50)
@given(labels=LABELS, fractions=st.tuples(FRACTIONS, FRACTIONS), seed=st.integers(0, 3))
def test_a_smaller_part_is_inside_a_larger(labels, fractions, seed):
    small, large = (set(balanced_part(labels, f, seed).tolist()) for f in sorted(fractions))
    assert small <= large


@given(labels=LABELS)
def test_all_of_it_is_all_of_it(labels):
    assert balanced_part(labels, 1.0, 0).tolist() == list(range(len(labels)))


def test_the_seed_chooses():
    labels = np.zeros(100, np.int64)
    assert balanced_part(labels, 0.2, 0).tolist() != balanced_part(labels, 0.2, 1).tolist()


CLUTTER = ClutterConfig(train_samples=200, test_samples=30)


def test_training_has_a_part_and_testing_the_whole():
    config = PartConfig(of=CLUTTER, fraction=0.25)
    part, whole = config.build("train"), CLUTTER.build("train")
    assert part.classes == whole.classes
    assert len(part) == 50
    places = balanced_part(whole.labels(), 0.25, 0)
    for index, place in enumerate(places):
        assert part.name(index) == whole.name(place)
        assert np.array_equal(part.read(index).data, whole.read(place).data)
        assert part.read(index).label == place % 10
    assert len(config.build("test")) == 30


def test_the_config_round_trips_and_its_leaves_name_the_whole():
    config = PartConfig(of=CLUTTER, fraction=0.5)
    assert config.kind() == "part"
    assert DatasetConfig.from_dict(config.as_dict()) == config
    assert dict(config.leaves("data"))["data.of.train_samples"] == 200
    other = config.override({"fraction": "0.25", "of.kind": "digits", "of.image_px": "16"})
    assert other == PartConfig(of=DigitsConfig(image_px=16), fraction=0.25)


def labelled_sets(folder):
    """One small data set of each kind with labels."""
    write_classes(folder / "folders" / "train", ["a", "b", "c"], 3)
    members = [(f"{i}.jpg", encoded(noise(8, 8, seed=i))) for i in range(4)]
    members += [(f"{i}.cls", str(i % 3).encode()) for i in range(3)]
    write_tar(folder / "tars" / "0.tar", sorted(members))
    cifar_10(folder / "cifar", "bin")
    return [
        CLUTTER,
        ImageFolderConfig(root=folder / "folders"),
        TarShardsConfig(root=folder / "tars", shards="*.tar", holdout=0.01),
        CifarConfig(root=folder / "cifar"),
        DigitsConfig(),
        ShapesConfig(count=70),
        ImageFolderConfig(root=folder / "folders", labelled=False),
    ]


def test_labels_are_those_of_the_records(tmp_path):
    for config in labelled_sets(tmp_path):
        data = config.build("train")
        found = [data.read(index).label for index in range(len(data))]
        labels = data.labels()
        if not data.classes:
            assert labels is None
            assert set(found) == {None}
            continue
        assert labels.dtype == np.int64
        assert labels.tolist() == [-1 if label is None else label for label in found]
        some = np.array([3, 0])
        assert Selection(data, some).labels().tolist() == labels[some].tolist()


def test_data_without_labels_is_refused(tmp_path):
    write_classes(tmp_path / "train", ["a"], 2)
    config = PartConfig(of=ImageFolderConfig(root=tmp_path, labelled=False), fraction=0.5)
    with refuses("data.of.kind=image_folder", "labels"):
        config.build("train")


def test_errors_of_the_whole_name_its_place(tmp_path):
    config = PartConfig(of=ImageFolderConfig(root=tmp_path / "data.root"), fraction=0.5)
    with refuses("data.of.root", "data.of.root="):
        config.build("train")


@pytest.mark.parametrize("fraction", [0, 1.01, -0.5])
def test_a_fraction_is_above_0_and_at_most_1(fraction):
    with refuses("fraction"):
        PartConfig.from_dict({"of": {"kind": "clutter"}, "fraction": fraction})
