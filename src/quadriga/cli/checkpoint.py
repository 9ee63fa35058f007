"""``quadriga checkpoint``: inspect, verify and export."""

from __future__ import annotations

import datetime
import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from quadriga.cli.options import Code, examples
from quadriga.errors import UserError, did_you_mean
from quadriga.formatting import bytes_, count

if TYPE_CHECKING:
    from quadriga.engine.checkpoint.read import StoredTensor
    from quadriga.engine.checkpoint.store import Manifest


checkpoint_app = typer.Typer(
    name="checkpoint",
    help="Look into checkpoints, verify them, and export their weights.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@checkpoint_app.command(
    epilog=examples(
        "quadriga checkpoint inspect runs/mae_digits",
        "quadriga checkpoint inspect runs/x/checkpoints/step_00001000 --tensors '*.blocks.0.*'",
    )
)
def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint, or a run: its newest checkpoint.")],
    pattern: Annotated[
        str | None,
        typer.Argument(
            help="With --tensors: a pattern (`optimizer.*norm*`), or a part of the names."
        ),
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List names, shapes and types, all or of PATTERN.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what a checkpoint holds. Only headers are read: a checkpoint of any size is quick."""
    listing = pattern or "*" if tensors or pattern is not None else None
    inspect_checkpoint(path, listing, json)


@checkpoint_app.command(
    epilog=examples("quadriga checkpoint verify runs/a runs/b/checkpoints/step_00001000")
)
def verify(
    paths: Annotated[
        list[Path], typer.Argument(help="Checkpoints, or runs: every checkpoint of them.")
    ],
) -> int:
    """Check every file against its checksum.

    The exit code is 0 when all checkpoints are whole, 1 when one is damaged, and 2 when a path
    is no checkpoint and no run.
    """
    return verify_checkpoints(paths)


@checkpoint_app.command(
    epilog=examples(
        "quadriga checkpoint export runs/x encoder.safetensors --to timm",
        "quadriga checkpoint export runs/x mae_hf --to hf --part all --weights ema",
    )
)
def export(
    path: Annotated[Path, typer.Argument(help="A run (its newest whole checkpoint) or one of it.")],
    output: Annotated[Path, typer.Argument(help="A file, or for hf a folder.")],
    to: Annotated[str, typer.Option(help="safetensors, hf, timm or onnx.")],
    weights: Annotated[str, typer.Option(help="raw, or ema for their moving average.")] = "raw",
    part: Annotated[
        str,
        typer.Option(
            help="encoder (of a student and its teacher the one that the method evaluates), "
            "student, teacher, or all: with the decoder and what else was learned."
        ),
    ] = "encoder",
    config: Annotated[
        Path | None, typer.Option(help="The run's config.json, for a checkpoint that was moved.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an export that is there already.")
    ] = False,
    code: Code = None,
) -> None:
    """Write the weights for use elsewhere, and run both models on the same input.

    An export that computes something else than the model is an error and is not kept.
    """
    export_checkpoint(path, output, to, weights, part, config, force)


DAMAGED = 1
"""Exit code of ``verify`` when a checkpoint is damaged."""

_WIDE = 10_000
"""Width in columns of a table outside a terminal, large enough that nothing is cut off."""


def inspect_checkpoint(path: Path, pattern: str | None, as_json: bool) -> None:
    """Print the contents of a checkpoint, from its manifest and the headers of its shards.

    Args:
        path: A checkpoint, or a run.
        pattern: Pattern of the tensors to list one by one; None to list none.
        as_json: Whether to print one JSON object instead of tables.

    Raises:
        UserError: No checkpoint is readable, or no tensor matches.
    """
    folder, manifest, tensors = _readable(path)
    listed = [] if pattern is None else _matching(tensors, pattern)
    facts = _facts(folder, manifest, tensors)
    parts = _parts(tensors)
    if as_json:
        described = {**facts, "parts": parts}
        if pattern is not None:
            described["tensors"] = [
                {"name": t.name, "shape": list(t.shape), "dtype": _dtype(t)} for t in listed
            ]
        print(json.dumps(described, indent=2))
        return
    _print_facts(facts)
    _print_table(
        ("part", "tensors", "elements", "size", "types"),
        [
            (name, str(p["tensors"]), count(p["elements"]), bytes_(p["bytes"]), _row(p["dtypes"]))
            for name, p in parts.items()
        ],
        numbers=(1, 2, 3),
    )
    if listed:
        rows = [(t.name, str(list(t.shape)), _dtype(t)) for t in listed]
        print()
        _print_table(("tensor", "shape", "type"), rows)


def _readable(path: Path) -> tuple[Path, Manifest, list[StoredTensor]]:
    """Return the checkpoint, or a run's newest one with a readable manifest and headers."""
    from quadriga.engine.checkpoint.read import checkpoints_of, stored_tensors
    from quadriga.engine.checkpoint.store import InvalidCheckpoint, read_manifest

    problems = []
    for folder in checkpoints_of(path):
        try:
            return folder, read_manifest(folder), stored_tensors(folder)
        except InvalidCheckpoint as error:
            problems.append(f"{folder}: {error}")
    raise UserError(f"no checkpoint can be read: {'; '.join(problems)}")


def _facts(folder: Path, manifest: Manifest, tensors: Sequence[StoredTensor]) -> dict[str, Any]:
    from quadriga.engine.checkpoint import store
    from quadriga.engine.checkpoint.read import trainable_elements

    written = datetime.datetime.fromtimestamp((folder / store.MANIFEST).stat().st_mtime)
    facts: dict[str, Any] = {
        "checkpoint": str(folder),
        "step": manifest.step,
        "written": written.astimezone().isoformat(sep=" ", timespec="seconds"),
        "ranks": manifest.world_size,
        "format": manifest.format,
        "config_hash": manifest.config_hash,
        "files": len(manifest.files),
        "bytes": sum(int(file.get("bytes", 0)) for file in manifest.files.values()),
        "tensors": len(tensors),
        "trainable_parameters": trainable_elements(tensors),
    }
    extra = getattr(manifest, "extra", None)
    return {**facts, "extra": extra} if extra else facts


def _parts(tensors: Sequence[StoredTensor]) -> dict[str, dict[str, Any]]:
    """Return the tensors, elements, bytes and dtypes of each part, as counts."""
    parts: dict[str, dict[str, Any]] = {}
    for tensor in tensors:
        empty = {"tensors": 0, "elements": 0, "bytes": 0, "dtypes": {}}
        part = parts.setdefault(tensor.part, empty)
        part["tensors"] += 1
        part["elements"] += tensor.elements
        part["bytes"] += tensor.bytes
        part["dtypes"][_dtype(tensor)] = part["dtypes"].get(_dtype(tensor), 0) + 1
    return parts


def _matching(tensors: Sequence[StoredTensor], pattern: str) -> list[StoredTensor]:
    """Return the tensors whose name matches a glob pattern, or contains a plain word.

    Raises:
        UserError: No tensor matches.
    """
    wild = any(sign in pattern for sign in "*?[")
    whole = pattern if wild else f"*{pattern}*"
    found = [tensor for tensor in tensors if fnmatch.fnmatchcase(tensor.name, whole)]
    if found:
        return found
    names = [tensor.name for tensor in tensors]
    modules = {name.rpartition(".")[0] for name in names}
    parts = sorted({name.partition(".")[0] for name in names})
    near = did_you_mean(pattern, [*names, *modules]) if not wild else ""
    if "did you mean" not in near:
        near = f"; the parts are {', '.join(f'{part}.*' for part in parts)}"
    raise UserError(f"no tensor is called {pattern}{near}")


def _dtype(tensor: StoredTensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _row(dtypes: dict[str, int]) -> str:
    """Return the dtypes as text, with their counts if there are several."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return ", ".join(f"{number} {name}" for name, number in dtypes.items())


def _print_facts(facts: dict[str, Any]) -> None:
    shown = {**facts, "size": bytes_(facts["bytes"])}
    shown["trainable_parameters"] = count(facts["trainable_parameters"])
    del shown["bytes"]
    for name, value in shown.pop("extra", {}).items():
        shown[f"extra {name}"] = value
    width = max(len(name) for name in shown)
    for name, value in shown.items():
        print(f"{name.replace('_', ' '):<{width}}  {value}")
    print()


def _print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()
) -> None:
    """Print a table at the terminal's width, or outside a terminal as wide as it needs.

    Args:
        head: Titles of the columns.
        rows: Cells of each row.
        numbers: Positions of the columns that are right-aligned.
    """
    # Every command imports this module.
    from rich.console import Console as RichConsole
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_edge=False)
    for position, name in enumerate(head):
        table.add_column(name, justify="right" if position in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = RichConsole(highlight=False, markup=False)
    console.print(table, width=None if console.is_terminal else _WIDE)


def verify_checkpoints(paths: Sequence[Path]) -> int:
    """Check every file of some checkpoints against its checksum and print the result.

    Args:
        paths: Checkpoints, or runs; of a run, every checkpoint is checked, oldest first.

    Returns:
        0, or 1 if a checkpoint is damaged.

    Raises:
        UserError: A path is no checkpoint and no run.
    """
    from quadriga.engine.checkpoint import store
    from quadriga.engine.checkpoint.read import checkpoints_of
    from quadriga.engine.checkpoint.store import InvalidCheckpoint
    from quadriga.engine.logs.console import Console

    folders = [folder for path in paths for folder in reversed(checkpoints_of(path))]
    damaged = 0
    with Console() as console:
        for position, folder in enumerate(folders):
            if sys.stdout.isatty():  # elsewhere, the line of each checkpoint shows the progress
                console.advance("verifying", position, len(folders), folder.name)
            try:
                manifest = store.verify(folder)
            except InvalidCheckpoint as error:
                damaged += 1
                console.say(f"{folder}  damaged: {error}")
            else:
                size = sum(int(file["bytes"]) for file in manifest.files.values())
                console.say(f"{folder}  OK  step {manifest.step}, {bytes_(size)}")
    print(f"{len(folders)} checked, {damaged} damaged")
    return DAMAGED if damaged else 0


def export_checkpoint(
    path: Path,
    output: Path,
    to: str,
    weights: str,
    part: str,
    config: Path | None,
    force: bool,
) -> None:
    """Export the model of a checkpoint and print how far its outputs differ from the model's.

    Args:
        path: A run or a checkpoint.
        output: The file or folder to write.
        to: The format.
        weights: raw or ema.
        part: encoder, student, teacher or all.
        config: The run's config.json, if it is not in the run's folder.
        force: Whether to replace an existing export.

    Raises:
        UserError: `to`, `weights` or `part` is invalid; or as `quadriga.export.export.export`.
    """
    from quadriga.engine.checkpoint.read import Weights
    from quadriga.engine.logs.console import Console
    from quadriga.export import export as exports
    from quadriga.export.subject import Part

    _one_of("--to", to, list(exports.FORMATS))
    _one_of("--weights", weights, get_args(Weights))
    _one_of("--part", part, get_args(Part))
    request = exports.ExportRequest(
        source=path,
        output=output,
        to=to,
        weights=cast(Weights, weights),
        part=cast(Part, part),
        config=config,
        force=force,
    )
    with Console() as console:
        done = exports.export(request)
        what = part if done.network is None else f"the {done.network}'s encoder"
        console.say(f"{what} of {done.checkpoint} ({weights} weights of step {done.step})")
        console.say(str(done.check))
        for file in done.files:
            console.say(f"written: {file}")
        if done.remark is not None:
            console.say(done.remark)


def _one_of(option: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise UserError(
            f"{option} must be one of {', '.join(valid)}, but is {value!r}"
            + (hint if "did you mean" in (hint := did_you_mean(value, valid)) else "")
        )
