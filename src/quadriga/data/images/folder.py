"""Images in folders, one sub-folder per class: ``root/train/CLASS/**/*.jpg``."""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from quadriga.config.base import Location
from quadriga.contracts import DatasetConfig, Split
from quadriga.data.images.files import ImageFiles, check_folder, in_split, scan_images, subfolders
from quadriga.errors import UserError, did_you_mean


@final
class ImageFolderConfig(DatasetConfig):
    """Images in class folders, in split folders or with a hold-out.

    Classes are the sub-folders in sorted order, their images are found at any depth below, in
    sorted order. With ``root/train`` the splits are sub-folders of the root; without it the root
    itself holds the class folders and the test split is a fixed hold-out of its images.
    """

    root: Location[Path]
    """The folder that holds the splits, or the classes."""
    train_split: str = "train"
    """Sub-folder of the training split."""
    test_split: tuple[str, ...] = ("val", "validation", "test")
    """Sub-folders of the test split; the first that exists is used."""
    holdout: float = Field(default=0.1, gt=0, lt=1)
    """Share of the images held out for testing when there are no split folders."""
    labelled: bool = True
    """False: the folders below a split mean nothing, images are found at any depth."""

    def build(self, split: Split) -> ImageFiles:
        """Find the images of one split.

        Raises:
            UserError: The folder is missing, has no images, or has no class folders.
        """
        check_folder(self.root, "data.root")
        train = self.root / self.train_split
        if train.is_dir():
            folder = train if split == "train" else self._test_folder()
            return ImageFiles(folder, *self._labelled_names(folder, train))
        self._refuse_lone_test_split()
        names, labels, classes = self._labelled_names(self.root, self.root)
        chosen = in_split(names, split, self.holdout)
        part = None if labels is None else labels[chosen]
        return ImageFiles(self.root, [names[i] for i in chosen], part, classes)

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
        folders = subfolders(self.root)
        if folders and set(folders) <= set(self.test_split):
            raise UserError(
                f"data.root must hold {self.train_split} beside {folders[0]}, but {self.root} "
                f"does not; name the training folder with data.train_split=NAME"
            )

    def _labelled_names(
        self, folder: Path, train: Path
    ) -> tuple[list[str], npt.NDArray[np.int64] | None, tuple[str, ...]]:
        """Return names, labels and classes of `folder`, with the classes of the folder `train`."""
        if not self.labelled:
            found = scan_images(folder)
            if not found:
                raise _empty(folder)
            return found, None, ()
        classes = tuple(subfolders(train))
        if not classes:
            raise _without_classes(train)
        position = {name: label for label, name in enumerate(classes)}
        names: list[str] = []
        counts = np.zeros(len(classes), np.int64)
        for name in subfolders(folder):
            if name not in position:
                hint = did_you_mean(name, classes) if len(classes) <= 20 else ""
                raise UserError(
                    f"data.root: every class of {folder} must be one of {train}'s, but {name} is "
                    f"not{hint}"
                )
            found = scan_images(folder / name)
            names += [f"{name}/{image}" for image in found]
            counts[position[name]] = len(found)
        if not names:
            raise _without_classes(folder)
        return names, np.repeat(np.arange(len(classes)), counts), classes


def _without_classes(folder: Path) -> UserError:
    if not scan_images(folder):
        return _empty(folder)
    return UserError(
        f"data.root must hold one folder per class, but {folder} holds images directly; "
        f"use data.kind=image_list, or data.labelled=false"
    )


def _empty(folder: Path) -> UserError:
    return UserError(f"data.root must hold images, but there are none in {folder}; check data.root")
