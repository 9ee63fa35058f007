"""Results of evaluations: one record each, appended to a file that nothing is taken out of.

``report/evaluations.jsonl`` has a JSON object a line: an `EvaluationRecord`, or the mark that a
run went back to an earlier step, whose later records are of a history that was given up. Runs of
revision 7f9c01b have ``report/evaluation.json`` instead, which is read and left as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from quadriga.config.base import within
from quadriga.contracts import Dataset, EvaluationResult, EvaluatorConfig, Split
from quadriga.engine.run_config import NEUTRAL, RunConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.files import fsync_folder, parse_json

RECORDS = "evaluations.jsonl"
SAVED_BEFORE = "evaluation.json"
"""The file of revision 7f9c01b: the results of the last step, and the metrics of all."""
_BACK_TO = "back_to"
_SETTINGS = ("weights", "precision", "train_samples", "test_samples")
"""Values of ``evaluation`` that decide what a protocol finds."""


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """What one protocol found of one state, and all that it depends on."""

    step: int
    """Finished steps of the state."""
    protocol: dict[str, Any]
    """Its ``kind`` and every value; the kind alone where an older revision evaluated."""
    metrics: dict[str, float]
    own: bool = True
    """Whether the run's own config asked for it."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Path -> value of each value by which it differs from the run's own config."""
    settings: dict[str, Any] | None = None
    """``weights``, ``precision``, ``train_samples`` and ``test_samples`` of ``evaluation``."""
    data: dict[str, Any] = field(default_factory=dict)
    """What it was evaluated on; see `data_facts`."""
    time: str | None = None
    """When, in UTC."""
    folder: str | None = None
    """Where its pictures and other files are, relative to the report's folder."""
    pictures: dict[str, str] = field(default_factory=dict)
    """File name in `folder` -> caption."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The protocol's name."""
        return str(self.protocol.get("kind", "unnamed"))

    @property
    def named_metrics(self) -> dict[str, float]:
        """``PROTOCOL.NAME`` and the value."""
        return {f"{self.kind}.{name}": float(value) for name, value in self.metrics.items()}

    @property
    def result(self) -> EvaluationResult:
        """The protocol's own part of it."""
        return EvaluationResult(self.kind, self.metrics, self.pictures, self.details)


def record_of(
    result: EvaluationResult,
    step: int,
    config: RunConfig,
    protocol: EvaluatorConfig,
    *,
    overrides: Mapping[str, Any],
    opened: Mapping[Split, Dataset],
    folder: str | None,
) -> EvaluationRecord:
    """Return the record of what a protocol has found now.

    Args:
        result: What it returned.
        step: Finished steps of what was evaluated.
        config: The config that it was evaluated with.
        protocol: The protocol.
        overrides: How that differs from the run's own; see `differences`.
        opened: The parts of the splits that were read.
        folder: Where its files are, relative to the report's folder.
    """
    return EvaluationRecord(
        step=step,
        protocol=protocol.values(),
        metrics=dict(result.metrics),
        own=not overrides,
        overrides=dict(overrides),
        settings=_settings(config),
        data=data_facts(config, opened),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        folder=folder,
        pictures=dict(result.pictures),
        details=dict(result.details),
    )


def data_facts(config: RunConfig, opened: Mapping[Split, Dataset]) -> dict[str, Any]:
    """Return what identifies data: its config, samples per split, and the classes by name."""
    named = [classes_of(data) for data in opened.values()]
    identities = {split: data.identity for split, data in opened.items() if data.identity}
    facts: dict[str, Any] = {
        "config": config.data.as_dict(),
        "samples": {split: len(data) for split, data in opened.items()},
        "classes": next(filter(None, named), []),
    }
    return {**facts, "identity": identities} if identities else facts


def classes_of(dataset: Dataset) -> list[str] | dict[str, list[str]]:
    """Return the class names in the order of the labels; of a mixture, task -> its classes."""
    if dataset.tasks:
        return {task: list(dataset.of_task(task).classes) for task in dataset.tasks}
    return list(dataset.classes)


def differences(config: RunConfig, run: RunConfig, protocol: EvaluatorConfig) -> dict[str, Any]:
    """Return path -> value of what makes an evaluation another one than the run's own.

    Args:
        config: What it is evaluated with.
        run: The run's own config.
        protocol: One of `config`'s protocols.
    """
    before = dict(run.leaves())
    found = {
        path: value
        for path, value in config.leaves()
        if not any(within(path, name) for name in NEUTRAL) and before.get(path) != value
    }
    mine, its = _settings(config), _settings(run)
    found |= {f"evaluation.{name}": mine[name] for name in mine if mine[name] != its[name]}
    kind = protocol.kind()
    own = next((p.values() for p in run.evaluation.protocols if p.kind() == kind), None)
    if own is None:
        return {**found, "evaluation.protocols": kind, **_changed(protocol, {})}
    return {**found, **_changed(protocol, own)}


def _changed(protocol: EvaluatorConfig, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a protocol that are not the run's; the defaults where it has none."""
    before = own or type(protocol)().values()
    kind = protocol.kind()
    return {f"{kind}.{n}": v for n, v in protocol.values().items() if before.get(n) != v}


def _settings(config: RunConfig) -> dict[str, Any]:
    return {name: getattr(config.evaluation, name) for name in _SETTINGS}


def append_record(folder: Path, record: EvaluationRecord) -> None:
    """Append a record to the file in the report's folder, and flush it to the disk.

    Raises:
        OSError: It cannot be written.
    """
    _append(folder, asdict(record))


def _append(folder: Path, entry: Mapping[str, Any]) -> None:
    path = folder / RECORDS
    with path.open("a+b") as stream:
        begun = stream.seek(0, os.SEEK_END)
        if begun:
            stream.seek(begun - 1)
            # What a killed process or a full disk has left of a line stays a line of its own.
            begun = stream.read(1) != b"\n"
        stream.write((b"\n" if begun else b"") + json.dumps(entry).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    fsync_folder(folder)


def forget_results_after(folder: Path, step: int) -> None:
    """Mark the records of later steps as given up: they will be made again, maybe otherwise.

    Raises:
        OSError: The mark cannot be written.
    """
    if any(record.step > step for record in read_records(folder)):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        _append(folder, {_BACK_TO: step, "time": now})


def read_records(folder: Path, notes: list[str] | None = None) -> list[EvaluationRecord]:
    """Return the records of the history that counts, in the order in which they were made.

    Args:
        folder: The report's folder.
        notes: Gets a sentence on what is damaged and left out.
    """
    records = list(_saved_before(folder / SAVED_BEFORE, notes))
    try:
        lines = (folder / RECORDS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    damaged = 0
    for line in filter(str.strip, lines):
        try:
            entry = parse_json(line)
            if isinstance(entry.get(_BACK_TO), int):
                records = [record for record in records if record.step <= entry[_BACK_TO]]
            else:
                records.append(_record(entry))
        except (ValueError, TypeError, AttributeError, KeyError):
            damaged += 1
    if damaged and notes is not None:
        plural = "lines" if damaged > 1 else "line"
        notes.append(f"{RECORDS} has {damaged} damaged {plural}, which are left out")
    return records


_TYPES = {
    "step": int,
    "protocol": dict,
    "metrics": dict,
    "overrides": dict,
    "data": dict,
    "pictures": dict,
    "details": dict,
}


def _record(entry: Mapping[str, Any]) -> EvaluationRecord:
    """Return a line as a record.

    Raises:
        TypeError: A value is missing or of another type.
    """
    known = {f.name: entry[f.name] for f in fields(EvaluationRecord) if f.name in entry}
    for name, kind in _TYPES.items():
        if name in known and not isinstance(known[name], kind):
            raise TypeError(name)
    return EvaluationRecord(**known)


def _saved_before(path: Path, notes: list[str] | None) -> Iterator[EvaluationRecord]:
    """Yield what an evaluation.json holds: steps of the past by their metrics, then the last."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        last, overrides = int(content["step"]), dict(content.get("overrides") or {})
        results = [dict(result) for result in content["results"]]
        past = {int(e["step"]): dict(e["numbers"]) for e in content.get("history", ())}
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        if notes is not None:
            notes.append(f"{path.name} cannot be read: {error!r}")
        return
    for step, metrics in past.items():
        if step == last and not overrides:
            continue
        for kind in dict.fromkeys(name.partition(".")[0] for name in metrics):
            named = {n.partition(".")[2]: v for n, v in metrics.items() if n.startswith(f"{kind}.")}
            yield EvaluationRecord(step=step, protocol={"kind": kind}, metrics=named)
    for result in results:
        yield EvaluationRecord(
            step=last,
            protocol={"kind": str(result.get("protocol", "unnamed"))},
            metrics=dict(result.get("numbers") or {}),
            own=not overrides,
            overrides=overrides,
            pictures=dict(result.get("pictures") or {}),
            details=dict(result.get("details") or {}),
        )


def find_record(
    records: Iterable[EvaluationRecord],
    step: int,
    config: RunConfig,
    protocol: EvaluatorConfig,
    overrides: Mapping[str, Any],
) -> EvaluationRecord | None:
    """Return the last record of a protocol with these very values, if there is one.

    A value that is younger than the record counts as equal, as in a config that was saved before;
    so does a precision that is auto, since the record has what it was decided to be.
    """
    protocols, settings = _plain(protocol.values()), _plain(_settings(config))
    if settings["precision"] == "auto":
        del settings["precision"]
    found = None
    for record in records:
        if (
            record.step == step
            and record.kind == protocol.kind()
            and record.overrides == _plain(overrides)
            and _agree(record.protocol, protocols)
            and _agree(record.settings or {}, settings)
        ):
            found = record
    return found


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _agree(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    return all(there[name] == value for name, value in here.items() if name in there)


def missing_protocols(
    config: RunConfig, folder: Path, step: int, plan: RunPlan | None = None
) -> Sequence[EvaluatorConfig]:
    """Return the run's protocols that have no result of their own for `step` yet.

    With a `plan` only those that are due at the step; before the first one all are.
    """
    records = read_records(folder)
    return [
        protocol
        for protocol in config.evaluation.protocols
        if (plan is None or step == 0 or plan.is_evaluated(step, protocol.kind()))
        and find_record(records, step, config, protocol, {}) is None
    ]


def metrics_at(folder: Path, step: int) -> dict[str, float]:
    """Return what the run's own protocols found of `step`: ``PROTOCOL.NAME`` and the value."""
    found: dict[str, float] = {}
    for record in read_records(folder):
        if record.own and record.step == step:
            found |= record.named_metrics
    return found


def pictures_at(folder: Path, step: int) -> dict[str, Path]:
    """Return ``PROTOCOL.NAME`` and the file of each picture by the run's own protocols."""
    return {
        f"{record.kind}.{Path(name).stem}": folder / (record.folder or "") / name
        for record in read_records(folder)
        if record.own and record.step == step
        for name in record.pictures
    }


def last_metrics(folder: Path) -> dict[str, float]:
    """Return `metrics_at` of the last step that the run's own protocols have evaluated."""
    steps = [record.step for record in read_records(folder) if record.own]
    return metrics_at(folder, max(steps)) if steps else {}
