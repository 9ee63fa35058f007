"""Evaluation results in evaluation.json: write, read, remove, and list missing ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quadriga.contracts import EvaluationResult, EvaluatorConfig
from quadriga.engine.run_config import RunConfig
from quadriga.files import parse_json, write_text

RESULTS = "evaluation.json"


def missing_protocols(config: RunConfig, folder: Path, step: int) -> list[EvaluatorConfig]:
    """Return the run's protocols that have no result for `step` yet."""
    done = {result["protocol"] for result in _own_results(folder, step)}
    return [protocol for protocol in config.evaluation.protocols if protocol.kind() not in done]


def metrics_at(folder: Path, step: int) -> dict[str, float]:
    """Return the results for `step` as ``PROTOCOL.NAME`` -> value."""
    return {
        f"{result['protocol']}.{name}": float(value)
        for result in _own_results(folder, step)
        for name, value in result["numbers"].items()
    }


def owes_evaluation(folder: Path, step: int, every: int) -> bool:
    """Return whether a run that resumes from `step` still has to evaluate that step.

    Args:
        folder: The folder of ``evaluation.json``, which holds the last evaluated step's results.
        step: Finished steps.
        every: Steps between evaluations.
    """
    return step > 0 and step % every == 0 and bool(read_results(folder / RESULTS)["step"] <= step)


def forget_results_after(folder: Path, step: int) -> None:
    """Drop results of steps after `step`, which will be repeated, perhaps with other results.

    Raises:
        OSError: The file cannot be written or removed.
    """
    path = folder / RESULTS
    old = read_results(path)
    if old["step"] <= step:
        return
    kept = [entry for entry in old.get("history", []) if entry["step"] <= step]
    if kept:
        write_text(path, json.dumps({"step": 0, "results": [], "history": kept}, indent=2) + "\n")
    else:
        path.unlink()


def _own_results(folder: Path, step: int) -> list[dict[str, Any]]:
    old = read_results(folder / RESULTS)
    own = old["step"] == step and not old.get("overrides")
    return list(old["results"]) if own else []


def read_results(path: Path) -> dict[str, Any]:
    """Return the content of evaluation.json; without results if it is missing or damaged."""
    nothing: dict[str, Any] = {"step": 0, "results": []}
    if not path.exists():
        return nothing
    try:
        loaded: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        return loaded if {"step", "results"} <= loaded.keys() else nothing
    except (OSError, ValueError, AttributeError):
        return nothing


def _as_json(result: EvaluationResult) -> dict[str, Any]:
    # Existing evaluation.json files store the metrics under the key "numbers".
    return {("numbers" if key == "metrics" else key): v for key, v in asdict(result).items()}


def merge_results(
    path: Path,
    step: int,
    results: Sequence[EvaluationResult],
    overrides: Mapping[str, str] | None = None,
) -> None:
    """Write results; keep those of other protocols at the same step with the same overrides.

    ``history`` keeps the metrics of every step that was evaluated without overrides.
    """
    old = read_results(path)
    new = {result.protocol: _as_json(result) for result in results}
    changed = dict(overrides or {})
    same = old["step"] == step and old.get("overrides", {}) == changed
    kept = [r for r in old["results"] if same and r["protocol"] not in new]
    merged: dict[str, Any] = {"step": step, "overrides": changed}
    merged["results"] = [*kept, *new.values()]
    merged["history"] = old.get("history", [])
    if not changed:
        metrics = {
            f"{result['protocol']}.{name}": float(value)
            for result in merged["results"]
            for name, value in result["numbers"].items()
        }
        others = [entry for entry in merged["history"] if entry["step"] != step]
        entries = [*others, {"step": step, "numbers": metrics}]
        merged["history"] = sorted(entries, key=lambda entry: int(entry["step"]))
    write_text(path, json.dumps(merged, indent=2) + "\n")
