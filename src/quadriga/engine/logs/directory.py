"""The run directory: its owner and lock, and the files that describe the run.

WORK_DIR/
    config.json         the resolved config and the source of each value
    data.json           the training data: its config, its samples and the names of its classes
    environment.json    versions, device, ranks, command line
    log.txt             console output
    metrics.jsonl       one JSON object per logged step, and per evaluation
    events.jsonl        one JSON object per event: a spike of the loss, a skipped step
    times.jsonl         times of attempts, with their steps, evaluations and ends
    console.txt         output of the run's process, if another process started it
    tensorboard/        the logged steps as event files
    samples/            the samples that each rank read, if log.samples
    hang/               the report of each rank after a hang
    left_out.json       steps whose update is skipped, after a rollback
    replay/             the weights before each bad step: quadriga replay FILE
    checkpoints/        step_00001000/ ...
    files/              copies of small files that the run needs: vocabulary, code of the user's own
    sidecars.json       which files of other layouts are written beside checkpoints, if any
    report/             index.html, evaluations.jsonl, pictures in evaluations/
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from quadriga.config.own_code import MissingCode, loaded_files
from quadriga.config.provenance import Resolved
from quadriga.engine.logs.results import RECORDS
from quadriga.engine.run_config import RunConfig, first_difference, identity
from quadriga.errors import UserError
from quadriga.files import LOCK, parse_json, take_lock, write_bytes, write_text

_SIDECARS, _DATA = "sidecars.json", "data.json"
_OWN = (LOCK, "log.txt", "report", ".config.json.partial", "times.jsonl", "console.txt")
"""Files that a run may leave if it was stopped before it wrote its config."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config with its sources."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """One JSON object per event."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """The folder of the samples that each rank read, if ``log.samples``."""
        return self.path / "samples"

    @property
    def report(self) -> Path:
        """The folder of the report and its pictures."""
        return self.path / "report"

    @property
    def files(self) -> Path:
        """Copies of small files that the run needs."""
        return self.path / "files"

    @property
    def replay(self) -> Path:
        """The folder of the replay files of bad steps."""
        return self.path / "replay"

    def read_config(self) -> Resolved[RunConfig]:
        """Read the run's config; a file that is gone is replaced by the copy that the run kept.

        Raises:
            UserError: There is no run here, or its config is damaged.
        """
        try:
            text = self.config.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise UserError(f"{self.path} holds no run: there is no {self.config.name}") from error
        except NotADirectoryError as error:
            raise UserError(
                f"{self.path} is one file and no run: a file of weights holds weights only; start "
                f"a run from it with warm_start.path={self.path} and name that run"
            ) from error
        except OSError as error:
            raise UserError(f"{self.config} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{self.config} is damaged: it is not text") from error
        try:
            return self._with_kept_files(Resolved.from_json(RunConfig, text))
        except MissingCode as error:
            copy = self.files / error.file_name
            raise MissingCode(error.path, error.kind, copy if copy.is_file() else None) from error
        except UserError as error:
            raise UserError(f"{self.config} is damaged: {error}") from error

    def _with_kept_files(self, saved: Resolved[RunConfig]) -> Resolved[RunConfig]:
        values = dict(saved.config.leaves())
        copies = {
            key: copy
            for key in saved.config.locations()
            if not Path(str(values.get(key))).exists() and (copy := self.kept_file(key))
        }
        return saved.override(copies, "a copy that the run kept") if copies else saved

    def kept_file(self, key: str) -> str | None:
        """Return the path of the copy of the file that a config key names, if there is one."""
        return next((str(path) for path in self.files.glob(f"{key}.*")), None)

    def keep_files(self, config: RunConfig) -> None:
        """Copy the small files that the run needs; copies that are there stay as they are.

        Raises:
            UserError: A file cannot be found, or the copy not written.
        """
        for name, file in config.data.kept_files().items():
            if self.kept_file(f"data.{name}") is None:
                with self.writing():
                    self.files.mkdir(exist_ok=True)
                    copy = self.files / f"data.{name}{file.suffix or '.txt'}"
                    write_text(copy, file.read_text(encoding="utf-8"))
        for own in loaded_files():
            if not (copy := self.files / own.path.name).is_file():
                with self.writing():
                    self.files.mkdir(exist_ok=True)
                    write_bytes(copy, own.text)

    def check_code(self) -> None:
        """Check that code of the user's own is that with which the run began.

        Raises:
            UserError: A file differs from the copy that the run keeps.
        """
        for path, copy in self.changed_code():
            raise UserError(
                f"work dir {self.path} was begun with another {path.name}, whose copy it keeps: "
                f"name {copy} instead of {path}, or choose another --work-dir"
            )

    def changed_code(self) -> list[tuple[Path, Path]]:
        """Return the imported files of the user's own that differ from the run's copies of them.

        Returns:
            (file, copy) of each.

        Raises:
            UserError: A copy cannot be read.
        """
        changed = []
        for own in loaded_files():
            copy = self.files / own.path.name
            try:
                if copy.read_bytes() != own.text:
                    changed.append((own.path, copy))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UserError(f"{copy} cannot be read: {error.strerror}") from error
        return changed

    def write_sidecars(self, values: Mapping[str, Any]) -> None:
        """Write which files of other layouts are written beside checkpoints, and where.

        Raises:
            OSError: The file cannot be written.
        """
        write_text(self.path / _SIDECARS, json.dumps(dict(values), indent=2, default=str) + "\n")

    def read_sidecars(self) -> dict[str, Any] | None:
        """Return the values of `write_sidecars`; None if the run writes no sidecar files.

        Raises:
            UserError: The file is damaged.
        """
        try:
            file = self.path / _SIDECARS
            if file.is_file():
                return dict(parse_json(file.read_text(encoding="utf-8")))
            # Up to revision 7f9c01b the config contained these values.
            file = self.config
            saved = parse_json(file.read_text(encoding="utf-8"))["config"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged: {error}") from error
        saving = saved.get("checkpoint", {})
        found: dict[str, Any] | None = saving.get("modular_files") or saving.get("stage_files")
        return found

    def check_owner(self, config: RunConfig) -> None:
        """Check that the directory is free or holds this run, without changing it.

        Raises:
            UserError: It belongs to another run, to one of other code, or holds files of no run.
        """
        if not self.config.exists():
            if self.path.is_dir() and any(p.name not in _OWN for p in self.path.iterdir()):
                raise UserError(
                    f"work dir {self.path} is not empty and holds no run; choose another --work-dir"
                )
            return
        self.check_code()
        there, here = identity(self.read_config().config), identity(config)
        if there != here:
            raise UserError(
                f"work dir {self.path} belongs to another run: {first_difference(there, here)}; "
                "choose another --work-dir"
            )

    def existing(self) -> set[Path]:
        """Return this folder, the folders above it and the files in it, as far as they exist."""
        inside = self.path.iterdir() if self.path.is_dir() else ()
        return {path for path in (self.path, *self.path.parents, *inside) if path.exists()}

    @contextlib.contextmanager
    def undone_without_results(self, before: set[Path]) -> Iterator[None]:
        """Return a context that removes what a start that fails has made, unless it has results.

        Args:
            before: What `existing` returned before anything was made; nothing of a run that was
                there already is removed.
        """
        try:
            yield
        except BaseException:
            if self.config not in before and not self._has_results():
                with contextlib.suppress(OSError):  # the error itself is raised
                    self._remove_all_but(before)
            raise

    def _has_results(self) -> bool:
        files = (self.metrics, self.path / "hang", self.report / RECORDS)
        if any(file.exists() and file.stat().st_size for file in files):
            return True
        return any(folder.is_dir() for folder in (self.checkpoints, self.replay))

    def _remove_all_but(self, kept: set[Path]) -> None:
        for path in self.path.iterdir():
            if path not in kept:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        for folder in (self.path, *self.path.parents):
            if folder in kept:
                break
            folder.rmdir()

    def create(self) -> None:
        """Make the folders.

        Raises:
            UserError: They cannot be created.
        """
        with self.writing():
            self.report.mkdir(parents=True, exist_ok=True)

    def write_config(self, resolved: Resolved[RunConfig]) -> None:
        """Write config.json, which makes this run the directory's owner.

        Raises:
            UserError: It cannot be written.
        """
        with self.writing():
            write_text(self.config, resolved.as_json())

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Return a context that turns an `OSError` into a `UserError` about the directory.

        Raises:
            UserError: A file cannot be written.
        """
        try:
            yield
        except OSError as error:
            raise UserError(
                f"work dir {self.path} cannot be written: {error.strerror}; make room or choose "
                "another --work-dir"
            ) from error

    def lock(self) -> IO[str]:
        """Lock the directory against other training processes until the returned file is closed.

        Raises:
            UserError: Another process is training here.
        """
        with self.writing():
            stream = take_lock(self.path / LOCK)
        if stream is None:
            raise UserError(
                f"work dir {self.path} is in use: another process trains there; "
                "wait for it or choose another --work-dir"
            )
        return stream

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Write environment.json.

        Raises:
            UserError: It cannot be written.
        """
        with self.writing():
            write_text(
                self.path / "environment.json", json.dumps(dict(environment), indent=2) + "\n"
            )

    def write_data(self, facts: Mapping[str, Any]) -> None:
        """Write data.json.

        Raises:
            UserError: The file cannot be written.
        """
        with self.writing():
            write_text(self.path / _DATA, json.dumps(dict(facts), indent=2) + "\n")

    def read_data(self) -> dict[str, Any]:
        """Return the content of data.json; empty where an older revision wrote none.

        Raises:
            UserError: The file is damaged.
        """
        try:
            return dict(parse_json((self.path / _DATA).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.path / _DATA} is damaged: {error}") from error

    def rewind_metrics(self, step: int) -> None:
        """Drop the logged steps after `step`, which will be repeated, and incomplete lines.

        The metrics of a resumed run then equal those of an uninterrupted run.

        Raises:
            UserError: It cannot be written.
        """
        if not self.metrics.exists():
            return
        kept = []
        with self.writing():
            text = self.metrics.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            try:
                record = parse_json(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.get("step", step + 1) <= step:
                kept.append(line)
        with self.writing():
            write_text(self.metrics, "".join(f"{line}\n" for line in kept))
