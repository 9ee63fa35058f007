"""The stack of shares, and the marks of events, against the records they are drawn from."""

from __future__ import annotations

import json
import re
from pathlib import Path

from report_fakes import record, write_run

from quadriga.report import charts as shares_module
from quadriga.report.charts import chart, shares_chart
from quadriga.report.run import write_report
from quadriga.report.run_files import read_run
from quadriga.report.series import curves_of


def shares(step: int, data: float, exchange: float, saving: float) -> dict[str, float]:
    fields = {"communication_share": exchange, "checkpoint_stall_share": saving}
    return record(step, data_wait_share=data, **fields)


def areas(html: str) -> list[list[tuple[float, float]]]:
    """Return the corners of each area, the height as a share of the drawing's."""
    paths = re.findall(r'<path class="share-\d" d="M([^Z]*)Z"', html)
    corners = [[tuple(map(float, c.split(","))) for c in path.split("L")] for path in paths]
    return [[(x, 1 - y / 300) for x, y in path] for path in corners]


def test_layers_stand_on_one_another() -> None:
    html = shares_chart([shares(1, 0.1, 0.2, 0.0), shares(5, 0.3, 0.1, 0.1)])
    data, exchange, saving = areas(html)
    top = 1.06 * 0.5
    assert [round(height * top, 3) for _, height in data] == [0.1, 0.3, 0.0, 0.0]
    assert [round(height * top, 3) for _, height in exchange] == [0.3, 0.4, 0.3, 0.1]
    assert [round(height * top, 3) for _, height in saving] == [0.3, 0.5, 0.4, 0.3]
    assert [x for x, _ in data] == [0, 1000, 1000, 0]
    for text in ("waiting for data 30.0 %", "exchanging gradients 10.0 %", "saving checkpoints"):
        assert text in html


def test_a_share_that_nobody_measured_is_not_drawn() -> None:
    assert shares_chart([record(1), record(2)]) == ""
    assert shares_chart([shares(1, 0.1, 0.2, 0.0)]) == ""
    without = [{**record(step), "checkpoint_stall_share": 0.25} for step in (1, 2)]
    assert len(areas(shares_chart(without))) == 2


def test_events_are_marked_on_the_loss(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=41)
    events = [
        {"event": "loss spike", "step": 11, "loss": 9.0},
        {"event": "skipped <step>", "step": 21},
        {"event": "skipped step", "step": 99},  # outside the axis
        {"event": "no step"},
    ]
    lines = [json.dumps(event) for event in events]
    (folder / "events.jsonl").write_text("\n".join([*lines, "{torn"]))
    run = read_run(folder)
    assert [event["step"] for event in run.events] == [11, 21, 99]
    loss, *others = (chart(curve, "0") for curve in curves_of(run.metrics, run.events))
    marks = re.findall(r'class="mark" style="left:([0-9.]+)%" title="([^"]*)"', loss)
    assert marks == [
        ("25.0", "loss spike, step 11"),
        ("50.0", "skipped &lt;step&gt;, step 21"),
    ]
    assert not any('class="mark"' in other for other in others)
    assert "loss spike, step 11" in write_report(folder).read_text()


def test_new_fields_are_no_metrics_of_the_method() -> None:
    fields = {"mfu": 0.4, "flops_per_second": 1e12, "tokens_per_second": 9.0, "skipped": True}
    metrics = [record(step, memory_peak_gib=2.0, **fields) for step in (1, 2)]
    curves = {curve.title: curve for curve in curves_of(metrics)}
    assert curves["model FLOP/s utilisation"].values == [40.0, 40.0]
    assert curves["memory, peak"].values == [2.0, 2.0]
    assert not {"mfu", "flops per second", "tokens per second", "skipped"} & curves.keys()


def test_the_wait_for_other_stages_is_a_share_and_no_metric_of_the_method() -> None:
    records = [{**shares(step, 0.1, 0.0, 0.0), "pipeline_wait_share": 0.4} for step in (1, 2)]
    html = shares_chart(records)
    assert len(areas(html)) == 4
    assert "waiting for other stages 40.0 %" in html
    assert not [curve for curve in curves_of(records) if "pipeline" in curve.title]
    styles = (Path(shares_module.__file__).parent / "page.css").read_text()
    for layer in range(len(shares_module.SHARES)):
        assert f".share-{layer} {{" in styles
