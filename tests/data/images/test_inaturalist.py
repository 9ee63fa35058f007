"""A small iNaturalist, written as the challenge's files are."""

from __future__ import annotations

import json

import pytest

from errors import refuses
from pictures import encoded, noise, write
from quadriga.contracts import DatasetConfig
from quadriga.data.images.inaturalist import InaturalistConfig

CATEGORIES = [
    {"id": 0, "name": "Corvus corax", "genus": "Corvus", "kingdom": "Animalia", "class": "Aves"},
    {"id": 1, "name": "Corvus corone", "genus": "Corvus", "kingdom": "Animalia", "class": "Aves"},
    {"id": 2, "name": "Bufo bufo", "genus": "Bufo", "kingdom": "Animalia", "class": "Amphibia"},
    {"id": 3, "name": "Acer rubrum", "genus": "Acer", "kingdom": "Plantae", "class": "Rosids"},
]
TRAIN = [3, 1, 0, 2, 1, 3]
VAL = [0, 1, 2]


def write_challenge(root, short=False, categories=True, year=2018):
    """Write annotations and images; return the names of each split's images."""
    names = {}
    for split, numbers, first in (("train", TRAIN, 100), ("val", VAL, 500)):
        images, annotations = [], []
        for place, category in enumerate(numbers):
            group = CATEGORIES[category]["class"]
            parts = [f"train_val{year}", group, str(category), f"{split}{place}.jpg"]
            images.append({"id": first + place, "file_name": "/".join(parts)})
            annotations.append({"id": place, "image_id": first + place, "category_id": category})
            kept = parts[:1] + parts[2:] if short else parts
            write(root.joinpath(*kept), encoded(noise(8, 9, seed=first + place)))
            names.setdefault(split, []).append("/".join(kept))
        order = annotations[::-1] if split == "val" else annotations
        content = {"images": images, "annotations": order}
        if not categories:
            content["categories"] = CATEGORIES[::-1]
        (root / f"{split}{year}.json").write_text(json.dumps(content))
    if categories:
        (root / "categories.json").write_text(json.dumps(CATEGORIES))
    return names


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("categories", [False, True])
@pytest.mark.parametrize("level", ["name", "genus", "kingdom", "class"])
def test_labels_follow_the_level(tmp_path, short, categories, level):
    names = write_challenge(tmp_path, short, categories)
    classes = list(dict.fromkeys(CATEGORIES[number][level] for number in TRAIN))
    for split, numbers, key in (("train", TRAIN, "train"), ("test", VAL, "val")):
        data = InaturalistConfig(root=tmp_path, level=level).build(split)
        assert data.classes == tuple(classes)
        assert len(data) == len(numbers)
        for index, number in enumerate(numbers):
            record = data.read(index)
            assert record.label == classes.index(CATEGORIES[number][level])
            assert record.name == str(tmp_path / names[key][index])
            assert record.data == (tmp_path / names[key][index]).read_bytes()


def test_another_year_has_other_files(tmp_path):
    write_challenge(tmp_path, year=2019)
    assert len(InaturalistConfig(root=tmp_path, year=2019).build("test")) == 3
    with refuses("data.root", "train2018.json", "data.year"):
        InaturalistConfig(root=tmp_path).build("test")


def test_the_config_round_trips(tmp_path):
    config = InaturalistConfig(root=tmp_path, year=2021, level="order")
    assert config.kind() == "inaturalist"
    assert DatasetConfig.from_dict(config.as_dict()) == config


def refusal(root, *fragments, split="train", **values):
    with refuses("data.", *fragments):
        InaturalistConfig(root=root, **values).build(split)


def test_refusals_say_what_is_wrong(tmp_path):
    write_challenge(tmp_path)
    refusal(tmp_path, "phylum", "number 0", "class, genus", level="phylum")
    val = tmp_path / "val2018.json"
    content = json.loads(val.read_text())
    content["annotations"][0]["category_id"] = 9
    val.write_text(json.dumps(content))
    refusal(tmp_path, "val2018.json", "KeyError 9", split="test")
    val.write_text(json.dumps({"images": [], "annotations": []}))
    refusal(tmp_path, "val2018.json", "images", split="test")
    val.write_text("{")
    refusal(tmp_path, "val2018.json", "JSON", split="test")
    val.write_text("[1]")
    refusal(tmp_path, "val2018.json", "TypeError", split="test")
    (tmp_path / "categories.json").write_text("[1]")
    refusal(tmp_path, "categories.json", "list")


def test_a_class_without_training_images_is_refused(tmp_path):
    write_challenge(tmp_path)
    path = tmp_path / "train2018.json"
    content = json.loads(path.read_text())
    kept = [a for a in content["annotations"] if a["category_id"] != 2]
    content["images"] = [i for i in content["images"] if i["id"] in {a["image_id"] for a in kept}]
    content["annotations"] = kept
    path.write_text(json.dumps(content))
    refusal(tmp_path, "Bufo bufo", split="test")


def test_missing_images_are_refused_before_training(tmp_path):
    names = write_challenge(tmp_path)
    (tmp_path / names["train"][0]).unlink()
    refusal(tmp_path, names["train"][0], "unpack")
