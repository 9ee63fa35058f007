"""iNaturalist from its annotation files (Van Horn et al., CVPR 2018, arXiv:1707.06642)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from pydantic import Field

from quadriga.config.base import Location
from quadriga.contracts import Split
from quadriga.data.images.encoded import EncodedImagesConfig
from quadriga.data.images.files import ImageFiles, check_folder
from quadriga.errors import UserError
from quadriga.files import parse_json

Level = Literal["name", "kingdom", "phylum", "class", "order", "supercategory", "family", "genus"]


@final
class InaturalistConfig(EncodedImagesConfig):
    """The images of a year's challenge, with labels from any level of the taxonomy.

    ``train{year}.json`` and ``val{year}.json`` name the images and their categories,
    ``categories.json`` (or the same list inside the former) says what a category belongs to. An
    image is looked for at the path that it is named by, then without the folder of its group
    (``train_val2018/2761/x.jpg`` for ``train_val2018/Aves/2761/x.jpg``). Classes are numbered in
    the order of their first training image.
    """

    root: Location[Path]
    """The folder that holds the annotations and the folders of images."""
    year: int = Field(default=2018, ge=2017, le=2100)
    """Year of the challenge, a part of the annotations' names."""
    level: Level = "name"
    """What is the class: the species, or a group that it belongs to."""

    def build(self, split: Split) -> ImageFiles:
        """Read the annotations of one split.

        Raises:
            UserError: A file is missing or is not what it should be, or no image is there.
        """
        check_folder(self.root, "data.root")
        train_path = self.root / f"train{self.year}.json"
        train = _read(train_path)
        class_of = _class_of_category(self.root, train, train_path, self.level)
        path = train_path if split == "train" else self.root / f"val{self.year}.json"
        annotations = train if split == "train" else _read(path)
        try:
            used = [class_of[int(a["category_id"])] for a in train["annotations"]]
            category = {a["image_id"]: int(a["category_id"]) for a in annotations["annotations"]}
            entries = [(str(i["file_name"]), category[i["id"]]) for i in annotations["images"]]
            named = [(name, class_of[number]) for name, number in entries]
        except (KeyError, TypeError, ValueError) as error:
            raise _not_annotations(path, f"{type(error).__name__} {error}") from error
        classes = tuple(dict.fromkeys(used))
        position = {name: label for label, name in enumerate(classes)}
        for _, name in named:
            if name not in position:
                raise UserError(
                    f"data.root: every {self.level} of {path} must be one of {train_path}'s, but "
                    f"{name} is not"
                )
        if not named:
            raise _not_annotations(path, "it has no images")
        names = _on_disk(self.root, [name for name, _ in named], path)
        labels = np.array([position[name] for _, name in named], np.int64)
        text = f"{len(names)} images of {len(classes)} classes in {path}"
        return ImageFiles(self.root, names, labels, classes, self.decoding(), text)


def _read(path: Path) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return parse_json(file.read())
    except OSError as error:
        raise UserError(
            f"data.root must hold {path.name}, but {path} cannot be read: "
            f"{error.strerror or error}; check data.root and data.year"
        ) from error
    except ValueError as error:
        raise _not_annotations(path, f"no JSON: {error}") from error


def _class_of_category(root: Path, train: Any, train_path: Path, level: Level) -> Mapping[int, str]:
    """Return what each category is called at a level of the taxonomy, by its number."""
    path = root / "categories.json"
    if path.is_file():
        categories = _read(path)
    else:
        path, categories = train_path, train.get("categories") if isinstance(train, dict) else None
    try:
        found = {int(c.get("id", place)): dict(c) for place, c in enumerate(categories)}
    except (AttributeError, TypeError, ValueError) as error:
        raise _not_annotations(path, f"its categories are no list of groups ({error})") from error
    lacking = [number for number, category in found.items() if level not in category]
    if lacking:
        levels = ", ".join(sorted(set(found[lacking[0]]) - {"id"}))
        raise UserError(
            f"data.level must be given for every category of {path}, but {level} is not for "
            f"number {lacking[0]}, which has: {levels}"
        )
    return {number: str(category[level]) for number, category in found.items()}


def _on_disk(root: Path, names: list[str], annotations: Path) -> list[str]:
    """Return the paths below `root` that the images really have, as the first of them shows."""
    if (root / names[0]).is_file():
        return names
    short = ["/".join((*parts[:1], *parts[2:])) for parts in (name.split("/") for name in names)]
    if (root / short[0]).is_file():
        return short
    raise UserError(
        f"data.root must hold the images of {annotations.name}, but neither {root / names[0]} nor "
        f"{root / short[0]} exists; unpack the images there"
    )


def _not_annotations(path: Path, reason: str) -> UserError:
    return UserError(
        f"data.root: {path} must be an annotation file of iNaturalist, but {reason}; download it "
        f"again"
    )
