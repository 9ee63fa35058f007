"""The report of a workflow: the picture of its graph, its runs and its costs."""

from __future__ import annotations

import re
from dataclasses import replace

from test_report_html import Page

from quadriga.engine.logs.run_cost import RunCost
from quadriga.engine.status import RunState
from quadriga.report.charts import BOX_HEIGHT, BOX_WIDTH, graph_picture, places_of
from quadriga.report.workflow import render_workflow
from quadriga.workflow.directory import Graph, Planned
from quadriga.workflow.ledger import as_json

NEEDS = {"meta": (), "a": ("meta",), "b<i>": ("meta",), "end": ("a", "b<i>"), "plain": ()}
PLANNED = Planned(
    total_steps=10,
    batch_size=8,
    ranks=2,
    parameters=1234,
    trainable_parameters=1200,
    flops_per_sample=5e9,
    memory_gib=0.5,
)
COST = RunCost(
    steps=10,
    samples=80,
    flops=4e11,
    seconds=60.0,
    device_seconds=120.0,
    attempts=1,
    memory_gib=2.0,
)
DONE = RunState(
    state="finished",
    step=10,
    total_steps=10,
    metric="held_out.accuracy",
    value=0.8125,
    eta_seconds=None,
    cost=COST,
)
STATES = dict.fromkeys(NEEDS, DONE) | {
    "b<i>": replace(DONE, state="failed", error="no <disk>", step=4),
    "end": replace(DONE, state="waiting", step=0, metric=None, value=None, cost=RunCost()),
}


def test_boxes_do_not_overlap_and_edges_go_to_the_right():
    places = places_of(NEEDS)
    corners = list(places.values())
    for i, (x, y) in enumerate(corners):
        for other_x, other_y in corners[i + 1 :]:
            assert abs(x - other_x) >= BOX_WIDTH or abs(y - other_y) >= BOX_HEIGHT
    for name, others in NEEDS.items():
        for other in others:
            assert places[other][0] + BOX_WIDTH < places[name][0]


def test_the_picture_has_every_node_edge_and_state():
    picture = graph_picture(NEEDS, STATES, "end", {"meta": "../meta/report/index.html"})
    assert picture.count('class="edge"') == sum(map(len, NEEDS.values()))
    kinds = re.findall(r'class="box ([a-z ]+)"', picture)
    assert kinds == ["finished", "finished", "failed", "waiting result", "finished"]
    assert picture.count("<a href=") == 1
    assert "b&lt;i&gt;" in picture
    assert "<i>" not in picture
    assert "accuracy 81.25 %" in picture
    Page(picture)


def test_every_number_is_on_the_page():
    graph = Graph("w", "end", NEEDS, dict.fromkeys(NEEDS, PLANNED), PLANNED)
    costs = {name: state.cost for name, state in STATES.items()}
    planned = dict.fromkeys(NEEDS, PLANNED.flops)
    ledger = as_json("w", "end", NEEDS, costs, planned, PLANNED.as_json())
    page = Page(render_workflow(graph, STATES, ledger, {"meta": "../meta/report/index.html"}))
    for expected in (
        "3 of 5 runs finished",
        "failed: no <disk>",
        "1.2 TFLOP",  # three of the four that the result needs are made
        "3.000",  # of the reference's
        "6 min 00 s",  # device time
        "2 min 00 s meta → a → end",  # critical path
        "400.0 GFLOP of 400.0 GFLOP",
        "0 FLOP of 400.0 GFLOP",
        "held out: accuracy 81.25 %",
        "reference, not run",
    ):
        assert expected in page.words, expected
    assert ("href", "../meta/report/index.html") in page.attributes
