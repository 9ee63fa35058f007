"""Be killed at each phase of a save, and take up again what is there.

    python kill_worker.py FOLDER

For each phase, forks a process that saves steps 1 and 2, then kills itself with SIGKILL in that
phase of the third save; then reads the newest whole checkpoint and saves two more. The phases of
two ranks fork two processes. Prints, for each phase, what was found.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from checkpoint_fakes import Tensors
from quadriga.distributed.environment import SINGLE, DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.engine.checkpoint import folder as checkpoint_files
from quadriga.engine.checkpoint import retention
from quadriga.engine.checkpoint import write as checkpoint_staging
from quadriga.engine.checkpoint.store import CheckpointStore, newest_valid, read_manifest
from quadriga.engine.checkpoint.write import CheckpointWriter
from quadriga.engine.run_config import CheckpointConfig
from quadriga.errors import UserError
from ranks import free_port

SHAPE = (40, 40)


def die(*arguments: Any, **options: Any) -> Any:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, call: int = 1) -> None:
    """Die instead of the given call of a function."""
    own, calls = getattr(owner, name), 0

    def function(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return die() if calls == call else own(*arguments, **options)

    setattr(owner, name, function)


def after(owner: Any, name: str) -> None:
    """Die when a function has done its work."""
    own = getattr(owner, name)

    def function(*arguments: Any, **options: Any) -> Any:
        own(*arguments, **options)
        die()

    setattr(owner, name, function)


def amid_the_file() -> None:
    """Die when some pieces of a file are on their way."""
    own = checkpoint_staging.StagedFile._pieces

    def pieces(file: Any) -> Iterator[memoryview]:
        for place, piece in enumerate(own(file)):
            if place == 4:
                die()
            yield piece

    checkpoint_staging.StagedFile._pieces = pieces


def amid_the_hash() -> None:
    """Die when a checksum is taken out."""
    own = hashlib.sha256

    def sha256() -> Any:
        return SimpleNamespace(update=own().update, hexdigest=die)

    checkpoint_staging.hashlib = SimpleNamespace(sha256=sha256)


def amid_the_text(owner: Any) -> None:
    """Die when half of a manifest or of best.json is written beside its place."""

    def write_half(path: Path, text: str) -> None:
        path.with_name(f".{path.name}.partial").write_text(text[: len(text) // 2])
        die()

    owner.write_text = write_half


def amid_the_removal() -> None:
    """Die when one file of an old checkpoint is removed."""

    def rmtree(path: Path, **options: Any) -> None:
        next(path.glob("*.safetensors")).unlink()
        die()

    checkpoint_files.shutil = SimpleNamespace(rmtree=rmtree)


PHASES: dict[str, Callable[[], None]] = {
    "copy": lambda: before(checkpoint_staging.StagedFile, "copy", 2),
    "folder": lambda: after(CheckpointWriter, "_begin"),
    "write": amid_the_file,
    "next file": lambda: before(checkpoint_staging.StagedFile, "write", 2),
    "flush": lambda: before(checkpoint_staging.os, "fsync"),
    "hash": amid_the_hash,
    "manifest": lambda: amid_the_text(checkpoint_files),
    "before the rename": lambda: before(checkpoint_files.os, "rename"),
    "after the rename": lambda: before(checkpoint_files, "fsync_folder"),
    "best.json": lambda: amid_the_text(retention),
    "before the removal": lambda: before(checkpoint_files.os, "rename", 2),
    "removal": amid_the_removal,
}
"""Places in the save of a step that has no checkpoint yet."""
REPLACING: dict[str, Callable[[], None]] = {
    "old one aside": lambda: before(checkpoint_files.os, "rename", 2),
    "new one in place": lambda: before(checkpoint_files, "fsync_folder"),
    "removal of the old one": amid_the_removal,
}
"""Places in the save of a step that has one."""


def store_of(folder: Path, env: DistEnv = SINGLE, **changes: Any) -> CheckpointStore:
    """Return a store that keeps two and the best."""
    config = CheckpointConfig.model_validate({"keep": 2, "keep_best": "loss", **changes})
    return CheckpointStore(folder, env, config, "h", lambda text: print(text, file=sys.stderr))


def save(store: CheckpointStore, step: int) -> None:
    """Save a state that says which step it is of; the later, the better."""
    store.report(step, {"loss": 1 / step})
    store.save(step, Tensors(step, SHAPE))


def save_and_die(folder: Path, phase: Callable[[], None], third: int) -> None:
    """Save steps 1 and 2, then `third` until the phase."""
    store = store_of(folder)
    for step in (1, 2):
        save(store, step)
    store.wait()
    phase()
    save(store, third)
    store.wait(final=True)


def forked(function: Callable[[], Any]) -> int:
    """Return how a forked process ended that called `function`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ends_while_saving(folder: Path) -> int:
    """Return how a process ended that reached the interpreter's end while a slow disk wrote."""
    child = os.fork()
    if child == 0:
        own = checkpoint_staging.StagedFile.write

        def write_slowly(file: Any, beside: Path) -> dict[str, Any]:
            time.sleep(0.05)
            return own(file, beside)

        checkpoint_staging.StagedFile.write = write_slowly
        save(store_of(folder), 1)
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def taken_up(folder: Path) -> dict[str, Any]:
    """Take up what a killed process left: return what was found, and what is there at the end."""
    said: list[str] = []
    found = newest_valid(folder, said.append)
    if found is None:
        return {"found": None}
    tensors = Tensors(0.0, SHAPE)
    with store_of(folder) as store:
        step = store.load(found, tensors)
        whole = all((t == step).all() for n, t in tensors.state.items() if n != "objective.flag")
        for later in (step + 1, step + 2):
            save(store, later)
    newest = newest_valid(folder, said.append)
    return {
        "found": step,
        "whole": bool(whole),
        "said": said,
        "newest": read_manifest(newest).step if newest else None,
        "left": sorted(path.name for path in folder.iterdir()),
    }


def on_two_ranks(function: Callable[[DistEnv], None]) -> list[int]:
    """Return how two ranks ended that called `function`."""
    port, children = free_port(), []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ.update(
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE="2",
                    LOCAL_WORLD_SIZE="2",
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=str(port),
                )
                with process_group("cpu", timeout_minutes=0.5) as env:
                    function(env)
                code = 0
            except UserError as error:
                os.write(2, f"rank {rank}: {error}\n".encode())  # whole beside the other's
                code = 2
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def one_rank_is_killed(folder: Path, env: DistEnv) -> None:
    """Save step 1; the second rank is killed while it writes step 2."""
    with store_of(folder, env) as store:
        save(store, 1)
        store.wait()
        if env.rank == 1:
            before(checkpoint_staging.StagedFile, "write")
        save(store, 2)
        store.wait()


def one_rank_cannot_write(folder: Path, policy: str, env: DistEnv) -> None:
    """Save steps 1 to 3; the second rank's disk is full at step 2."""
    own = checkpoint_staging.StagedFile.write

    def write(file: Any, beside: Path) -> dict[str, Any]:
        if env.rank == 1 and "00000002" in beside.name:
            raise OSError(28, "No space left on device")
        return own(file, beside)

    checkpoint_staging.StagedFile.write = write
    with store_of(folder, env, on_failure=policy) as store:
        for step in (1, 2, 3):
            save(store, step)


def main() -> None:
    """Go through the phases and tell."""
    torch.set_num_threads(1)
    checkpoint_staging.FILE_BYTES, checkpoint_staging.PIECE_BYTES = 4096, 512
    base, told = Path(sys.argv[1]), {}
    for name, phase in PHASES.items():
        folder = base / name
        code = forked(lambda folder=folder, phase=phase: save_and_die(folder, phase, 3))
        told[name] = {"code": code, **taken_up(folder)}
    for name, phase in REPLACING.items():
        folder = base / name
        code = forked(lambda folder=folder, phase=phase: save_and_die(folder, phase, 2))
        told[name] = {"code": code, **taken_up(folder)}
    told["end"] = {"code": ends_while_saving(base / "end"), **taken_up(base / "end")}
    told["one rank is killed"] = {
        "codes": on_two_ranks(lambda env: one_rank_is_killed(base / "killed", env)),
        **taken_up(base / "killed"),
    }
    for policy in ("stop", "continue"):
        folder = base / policy
        told[policy] = {
            "codes": on_two_ranks(partial(one_rank_cannot_write, folder, policy)),
            **taken_up(folder),
        }
    shutil.rmtree(base, ignore_errors=True)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
