"""Features of a folder of images in one file, NumPy's or parquet, with the images' names.

Batches go to the disk as they are made, so that patches of any number of images fit in memory.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

import numpy as np
import numpy.typing as npt
import torch

from quadriga.config.provenance import COMMAND_LINE, read_overrides
from quadriga.contracts import Dataset
from quadriga.data.images.list import ImageListConfig
from quadriga.data.reading.loader import sequential
from quadriga.distributed.environment import DistEnv
from quadriga.engine.logs.console import Console
from quadriga.engine.preflight import check_weights
from quadriga.engine.subject import open_subject
from quadriga.errors import UserError
from quadriga.export.encoder import ImageEncoder
from quadriga.files import fsync_file, fsync_folder

Arrays = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """What is embedded, and where it goes."""

    source: Path
    """A run, a checkpoint of one, a file of weights, or the folder of a published model."""
    images: Path
    """A folder, whose images are taken at any depth, or a list file as of `ImageListConfig`."""
    output: Path
    """The file to write; its suffix, .npz or .parquet, is its format."""
    overrides: tuple[str, ...] = ()
    """``key=value`` of the run's config, such as ``views.test_crop_fraction=1.0``."""
    patches: bool = False
    """Whether the patch tokens are written too."""
    batch_size: int = 64
    """Images per batch."""
    force: bool = False
    """Whether an existing file is replaced."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What has been written."""

    images: int
    left_out: int
    """Images that could not be read."""
    shapes: Mapping[str, tuple[int, ...]]
    """Name of an array -> its shape for one image."""


def embed(request: EmbedRequest, env: DistEnv, console: Console) -> Embedded:
    """Write the features of images, which are those that the protocols evaluate.

    Args:
        request: What, and where to.
        env: This process, the only one; its device computes.
        console: Shows the progress, and warns of images that cannot be read.

    Raises:
        UserError: The source has no image encoder, there are no images, the file is there already
            or cannot be written, or there are several processes.
    """
    output = request.output
    if env.world_size > 1:
        raise UserError(
            f"embed must be one process, but is {env.world_size}: each would write {output}; "
            "start it without a launcher, on a part of the images each"
        )
    writer = _WRITERS[_suffix(output)]
    if output.exists() and not request.force:
        raise UserError(f"{output} exists already; replace it with --force, or name another file")
    subject = open_subject(request.source, None)
    config = subject.run.override(read_overrides(request.overrides), COMMAND_LINE)
    check_weights(config)
    listed = _images(request.images)
    dataset, root = listed.build("train"), os.path.join(listed.root, "")
    found, step = subject.find(env, console)
    encoder = ImageEncoder(subject.load(config, found, env, console)[0], config.views)
    about = {
        "source": str(request.source),
        "step": step,
        "weights": config.evaluation.weights,
        "views": config.views.as_dict(),
    }
    with _replacing(output) as partial, writer(partial, json.dumps(about, default=str)) as table:
        done, shapes = 0, {}
        for batch in sequential(
            dataset,
            config.views.build("test"),
            range(len(dataset)),
            batch_size=request.batch_size,
            env=env,
            workers=config.evaluation.workers,
            warn=console.warn,
        ):
            with torch.no_grad():
                arrays = {"features": encoder.features(batch["image"]).float().cpu().numpy()}
                if request.patches:
                    arrays["patches"] = encoder.patch_tokens(batch["image"]).float().cpu().numpy()
            index = batch["index"].tolist()
            names = [dataset.name(i).removeprefix(root) for i in index]
            table.add(names, _classes(dataset, names, index), arrays)
            shapes = {name: array.shape[1:] for name, array in arrays.items()}
            done += len(index)
            console.advance("embedding", index[-1] + 1, len(dataset))
    return Embedded(images=done, left_out=len(dataset) - done, shapes=shapes)


def _images(path: Path) -> ImageListConfig:
    if not path.exists():
        raise UserError(f"{path} does not exist; name a folder of images, or a list of them")
    root, files = (path, None) if path.is_dir() else (path.parent, path)
    return ImageListConfig(root=root, files=files, holdout=0)


def _classes(dataset: Dataset, names: Sequence[str], index: Sequence[int]) -> list[str]:
    """Return the label that a list gives each image, else the first folder of its name."""
    labels = dataset.labels()
    if labels is None:
        return [name.partition("/")[0] if "/" in name else "" for name in names]
    return [dataset.classes[labels[i]] for i in index]


def _suffix(output: Path) -> str:
    suffix = output.suffix.lower()
    if suffix not in _WRITERS:
        raise UserError(f"--out must end in {' or '.join(_WRITERS)}, but is {output}; rename it")
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"--out {output} needs pyarrow, which is not installed; "
            "pip install 'quadriga[parquet]', or write .npz"
        )
    if not output.parent.is_dir():
        raise UserError(f"--out {output} must be in a folder that exists; make {output.parent}")
    return suffix


@contextlib.contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """Yield a file beside `output` that becomes it, or is removed after an error."""
    partial = output.with_name(f".{output.name}.partial")
    try:
        yield partial
        fsync_file(partial)
        os.replace(partial, output)
        fsync_folder(output.parent)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


class _Table(ABC):
    """A table of images that grows by batches and is whole at the end of its ``with`` block."""

    def __init__(self, path: Path, about: str) -> None:
        """Prepare the table; `about` is kept with it."""
        self.path, self.about = path, about
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with self.stack:
            if kind is None:
                self.finish()

    @abstractmethod
    def add(self, names: list[str], classes: list[str], arrays: Arrays) -> None:
        """Append rows: for each image its name, its class, and a row of each float32 array."""

    def finish(self) -> None:
        """Write what is not on the disk yet."""
        return None


@final
class _NumpyTable(_Table):
    """Members ``names``, ``classes``, one per array, and ``about``."""

    def __init__(self, path: Path, about: str) -> None:
        super().__init__(path, about)
        self.texts: dict[str, list[str]] = {"names": [], "classes": []}
        self.arrays: dict[str, tuple[IO[bytes], tuple[int, ...]]] = {}

    def add(self, names: list[str], classes: list[str], arrays: Arrays) -> None:
        self.texts["names"] += names
        self.texts["classes"] += classes
        for name, array in arrays.items():
            if name not in self.arrays:
                # The header of an array begins with its length, which is not known yet.
                spool = self.stack.enter_context(tempfile.TemporaryFile(dir=self.path.parent))
                self.arrays[name] = spool, array.shape[1:]
            self.arrays[name][0].write(array.astype("<f4").tobytes())

    def finish(self) -> None:
        rows = len(self.texts["names"])
        with zipfile.ZipFile(self.path, "w") as archive:
            for name, value in {**self.texts, "about": self.about}.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, np.array(value), allow_pickle=False)
            for name, (spool, shape) in self.arrays.items():
                header = {"descr": "<f4", "fortran_order": False, "shape": (rows, *shape)}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_2_0(member, header)
                    spool.seek(0)
                    shutil.copyfileobj(spool, member, 1 << 20)


@final
class _ParquetTable(_Table):
    """Columns ``name``, ``class``, and a list of fixed size for each array.

    Patches are a list of lists; what `about` says is the metadata ``quadriga`` of the schema.
    """

    writer: Any = None

    def add(self, names: list[str], classes: list[str], arrays: Arrays) -> None:
        import pyarrow
        import pyarrow.parquet

        columns = {"name": pyarrow.array(names), "class": pyarrow.array(classes)}
        for name, array in arrays.items():
            column = pyarrow.array(array.reshape(-1))
            for size in reversed(array.shape[1:]):
                column = pyarrow.FixedSizeListArray.from_arrays(column, size)
            columns[name] = column
        rows = pyarrow.table(columns, metadata={"quadriga": self.about})
        if self.writer is None:
            self.writer = self.stack.enter_context(
                pyarrow.parquet.ParquetWriter(self.path, rows.schema)
            )
        self.writer.write_table(rows)


_WRITERS: dict[str, type[_Table]] = {".npz": _NumpyTable, ".parquet": _ParquetTable}
