"""Images in folders, one sub-folder per class: ``root/train/CLASS/**/*.jpg``."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from quadriga.config.base import Location
from quadriga.contracts import Split
from quadriga.data.images.encoded import EncodedImagesConfig
from quadriga.data.images.files import HELD_OUT_BY_CLASS, ImageFiles, check_folder, in_split
from quadriga.data.images.scan import (
    Skipped,
    found_and_skipped,
    holds_image,
    scan_images,
    subfolders,
)
from quadriga.errors import UserError, did_you_mean


@final
class ImageFolderConfig(EncodedImagesConfig):
    """Images in class folders, in split folders or with a hold-out.

    Classes are the sub-folders that hold images, in sorted order; their images are found at any
    depth below, in sorted order. With ``root/train`` the splits are sub-folders of the root;
    without it the root itself holds the class folders and the test split is a fixed hold-out.
    """

    root: Location[Path]
    """The folder that holds the splits, or the classes."""
    train_split: str = "train"
    """Sub-folder of the training split."""
    test_split: tuple[str, ...] = ("val", "validation", "test")
    """Sub-folders of the test split; the first that exists is used."""
    holdout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the images held out for testing when there are no split folders; 0: none are."""
    labelled: bool = True
    """False: the folders below a split mean nothing, images are found at any depth."""

    def build(self, split: Split) -> ImageFiles:
        """Find the images of one split.

        Raises:
            UserError: The folder is missing, has no images, or has no class folders.
        """
        check_folder(self.root, "data.root")
        train = self.root / self.train_split
        skipped = Skipped()
        if train.is_dir():
            folder = train if split == "train" else self._test_folder()
            found = self._find(folder, train, skipped)
            return self._dataset(folder, found, f"{found} in {folder}", skipped)
        self._refuse_lone_test_split()
        found = self._find(self.root, self.root, skipped)
        chosen = in_split(found.names, split, self.holdout, found.labels)
        part = _Found(
            [found.names[i] for i in chosen],
            None if found.labels is None else found.labels[chosen],
            found.classes,
        )
        whose = "to train on" if split == "train" else "held out for testing"
        text = f"{found} in {self.root}, {len(chosen)} of them {whose}"
        dataset = self._dataset(self.root, part, text, skipped)
        dataset.identity = HELD_OUT_BY_CLASS
        return dataset

    def _dataset(self, folder: Path, found: _Found, text: str, skipped: Skipped) -> ImageFiles:
        description = found_and_skipped(text, skipped)
        return ImageFiles(folder, *found, self.decoding(), description)

    def _test_folder(self) -> Path:
        for name in self.test_split:
            if (self.root / name).is_dir():
                return self.root / name
        raise UserError(
            f"data.root must hold a test split beside {self.train_split}, but {self.root} has "
            f"none of {', '.join(self.test_split)}; name its folder with data.test_split=NAME"
        )

    def _refuse_lone_test_split(self) -> None:
        # Read as a class, the test images would be trained on.
        folders = subfolders(self.root, Skipped())
        if folders and set(folders) <= set(self.test_split):
            raise UserError(
                f"data.root must hold {self.train_split} beside {folders[0]}, but {self.root} "
                f"does not; name the training folder with data.train_split=NAME"
            )

    def _find(self, folder: Path, train: Path, skipped: Skipped) -> _Found:
        """Find the images of `folder`, with the classes of the folder `train`."""
        if not self.labelled:
            names = scan_images(folder, skipped)
            if not names:
                raise _empty(folder, skipped)
            return _Found(names, None, ())
        images: dict[str, list[str]] = {}
        for name in subfolders(folder, skipped):
            images[name] = scan_images(folder / name, skipped, f"{name}/")
            if not images[name]:
                del images[name]
                skipped.add("without images", f"{name}/")
        classes = list(images)
        if folder != train:
            classes = [n for n in subfolders(train, Skipped()) if holds_image(train / n)]
        if not images or not classes:
            raise _without_classes(folder if classes else train, skipped)
        for name in images:
            if name not in classes:
                hint = did_you_mean(name, classes) if len(classes) <= 20 else ""
                raise UserError(
                    f"data.root: every class of {folder} must be one of {train}'s, but {name} is "
                    f"not{hint}"
                )
        counts = [len(images.get(name, ())) for name in classes]
        names = [name for of_class in images.values() for name in of_class]
        return _Found(names, np.repeat(np.arange(len(classes)), counts), tuple(classes))


class _Found(NamedTuple):
    names: list[str]
    labels: npt.NDArray[np.int64] | None
    classes: tuple[str, ...]

    def __str__(self) -> str:
        of = f" of {len(self.classes)} classes" if self.classes else " without labels"
        return f"{len(self.names)} images{of}"


def _without_classes(folder: Path, skipped: Skipped) -> UserError:
    if not scan_images(folder, Skipped()):
        return _empty(folder, skipped)
    return UserError(
        f"data.root must hold one folder per class, but {folder} holds images directly; "
        f"use data.kind=image_list, or data.labelled=false"
    )


def _empty(folder: Path, skipped: Skipped) -> UserError:
    passed_over = f" ({text})" if (text := str(skipped)) else ""
    return UserError(
        f"data.root must hold images, but there are none in {folder}{passed_over}; check data.root"
    )
