"""Exports a checkpoint's model: writes to a staging folder, compares outputs, then renames."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from quadriga.config.provenance import Resolved
from quadriga.engine.build import build_objective
from quadriga.engine.checkpoint.read import (
    Weights,
    checkpoints_of,
    is_checkpoint,
    read_model,
    whole_checkpoint,
)
from quadriga.engine.checkpoint.store import read_manifest
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.export.huggingface import CONFIG, WEIGHTS, HuggingFaceFormat
from quadriga.export.onnx import OnnxFormat
from quadriga.export.safetensors import SafetensorsFormat
from quadriga.export.subject import Check, Format, Part, Subject
from quadriga.export.timm import TimmFormat
from quadriga.files import fsync_file, fsync_folder
from quadriga.weights import Remedies, load_tensors

FORMATS: dict[str, Format] = {
    "safetensors": SafetensorsFormat(),
    "hf": HuggingFaceFormat(),
    "timm": TimmFormat(),
    "onnx": OnnxFormat(),
}

_REMEDIES = Remedies(
    loose="name the config that the checkpoint was made with (--config)",
    resample="use that config's sizes",
)


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export, and where to."""

    source: Path
    """A run, or a checkpoint of a run."""
    output: Path
    to: str
    """One of `FORMATS`."""
    weights: Weights = "raw"
    part: Part = "encoder"
    config: Path | None = None
    """The config.json of the run, for a checkpoint outside its run's folder."""
    force: bool = False
    """Whether an existing export is replaced."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of an export."""

    checkpoint: Path
    step: int
    network: str | None
    """Of a method with two encoders, the one that was exported alone: student or teacher."""
    files: tuple[Path, ...]
    check: Check
    remark: str | None
    """A hint for users of the export, or None."""


def export(request: ExportRequest) -> Exported:
    """Export the model of a checkpoint; the export appears only if both compute the same.

    Args:
        request: What to export.

    Raises:
        UserError: There is no whole checkpoint, the format cannot hold the model, the output
            exists, or the export computes other outputs; then nothing is written.
    """
    form = FORMATS[request.to]
    checkpoints_of(request.source)
    config = read_run_config(request.source, request.config)
    if config.modular is not None and config.modular.kind() == "hybrid":
        raise UserError(
            f"{request.source} must be a whole model, but has modules that train apart "
            "(modular.kind=hybrid); assemble them (modular.kind=assembly) and export that run"
        )
    form.check(config, request.part)
    _check_output(form, request)
    folder = whole_checkpoint(request.source)
    subject = _subject(config, folder, request)
    with _staging(request.output) as staging:
        staged = staging / request.output.name
        form.write(subject, staged)
        check = form.verify(subject, staged)
        if not check.passed:
            raise UserError(
                f"the export computes something else than the model, and is not kept: {check}"
            )
        staged_files = [path for path in [*form.sidecar_files(staged), staged] if path.exists()]
        files = tuple(_place(path, request.output.parent) for path in staged_files)
        for left_over in set(form.sidecar_files(request.output)) - set(files):
            left_over.unlink(missing_ok=True)  # from the export that is replaced
        fsync_folder(request.output.parent)
    return Exported(
        checkpoint=folder,
        step=subject.step,
        network=subject.network,
        files=files,
        check=check,
        remark=form.remark(subject),
    )


def read_run_config(source: Path, file: Path | None) -> RunConfig:
    """Return the config of the run that a checkpoint belongs to.

    Args:
        source: A run, a checkpoint, or the folder ``checkpoints`` of a run.
        file: The config.json; None to look for it in `source` and up to three folders above.

    Raises:
        UserError: There is no config.json, or it is damaged.
    """
    if file is not None:
        try:
            return Resolved.from_json(RunConfig, file.read_text(encoding="utf-8")).config
        except (OSError, UnicodeDecodeError, UserError) as error:
            raise UserError(f"--config must be the config.json of a run: {error}") from error
    start = source.resolve()
    for folder in (start, *start.parents[:3]):
        directory = RunDirectory(folder)
        if directory.config.is_file():
            return directory.read_config().config
    what = "checkpoint" if is_checkpoint(source) else "folder"
    raise UserError(
        f"the {what} {source} is in no run: there is no config.json above it; add --config FILE, "
        "the config.json of its run"
    )


def _subject(config: RunConfig, folder: Path, request: ExportRequest) -> Subject:
    """Build the objective on the CPU and load the checkpoint's weights."""
    objective = build_objective(config, torch.device("cpu"), config.seed)
    tensors = read_model(folder, request.weights, "--weights")
    load_tensors(objective, tensors, folder, "quadriga", remedies=_REMEDIES)
    manifest = read_manifest(folder)
    names = manifest.extra.get("classes", ())  # of a mixture they are by task
    return Subject(
        config=config,
        objective=objective.eval(),
        part=request.part,
        step=manifest.step,
        weights=request.weights,
        class_names=tuple(names) if isinstance(names, list) else (),
    )


def _check_output(form: Format, request: ExportRequest) -> None:
    """Check that the output has the right suffix and that writing it loses no other file.

    Raises:
        UserError: The suffix is wrong, or the output exists and must not or cannot be replaced.
    """
    output = request.output
    if form.suffix and output.suffix != form.suffix:
        raise UserError(f"OUTPUT must end in {form.suffix} for --to {request.to}, but is {output}")
    for path in [output, *form.sidecar_files(output)]:
        empty = path.is_dir() and not any(path.iterdir())
        if not path.exists() or (empty and not form.suffix):
            continue
        if not request.force:
            raise UserError(f"{path} exists; add --force to replace it, or choose another OUTPUT")
        if path.is_dir() == bool(form.suffix):
            kind = "file" if form.suffix else "folder"
            raise UserError(f"OUTPUT must be a {kind} for --to {request.to}, but {path} is none")
        if path.is_dir():
            foreign = sorted(p.name for p in path.iterdir() if p.name not in (CONFIG, WEIGHTS))
            if foreign:
                raise UserError(
                    f"{path} holds files that no export wrote ({foreign[0]}) and is not replaced; "
                    "choose another OUTPUT"
                )


@contextlib.contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """Make a temporary folder beside the output, which is always removed.

    Raises:
        UserError: A file cannot be written.
    """
    staging = output.parent / f".{output.name}.{os.getpid()}.partial"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        yield staging
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write the export to {output}: {reason}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _place(staged: Path, folder: Path) -> Path:
    """Flush a staged file or folder and move it to `folder`."""
    for path in staged.iterdir() if staged.is_dir() else (staged,):
        fsync_file(path)
    final = folder / staged.name
    if not (staged.is_dir() and final.exists()):
        os.rename(staged, final)
        return final
    # A rename cannot replace a folder that is not empty: the old one is renamed first.
    aside = staged.with_name(f"{staged.name}.old")
    os.rename(final, aside)
    try:
        os.rename(staged, final)
    except OSError:
        os.rename(aside, final)
        raise
    return final
