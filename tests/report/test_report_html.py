import json
import re
from html.parser import HTMLParser

import pytest
import report_fakes as fakes
from PIL import Image

from errors import assert_says, refuses
from quadriga.report.run import render, write_report
from quadriga.report.run_files import read_run
from quadriga.report.sections import training_seconds
from quadriga.report.series import curves_of

VOID = {"meta", "link", "img", "input", "br", "stop", "path"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers text, attributes and scripts."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.attributes, self.tags = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def report_of(folder):
    path = write_report(folder)
    assert path == folder / "report" / "index.html"
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


def test_every_number_is_on_the_page(tmp_path):
    html, page = report_of(fakes.write_run(tmp_path / "run", steps=50))
    for expected in (
        "mae_tiny",
        "finished",
        "mae · vit · digits",
        "21 November 2025, 08:12 UTC",
        "45.31 %",
        "31.20 %",
        "+14.11 points",
        "88.25 %",
        "\N{MINUS SIGN}2.25 points",
        "56.72 %",
        "+18.31 points",
        "0.3812",
        "5.8 M",
        "A processor",
        "4 epochs",
        "25 s",
        "quadriga train mae_tiny train.epochs=4",
        "train.epochs",
        "command line",
        "temperature 0.07",
    ):
        assert expected in page.words, expected
    assert page.tags.count("svg") == 6
    assert "data:image/png;base64," in html
    with Image.open(tmp_path / "run" / "report" / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000


def test_points_of_the_chart_are_the_logged_values(tmp_path):
    _, page = report_of(fakes.write_run(tmp_path / "run", steps=10))
    points = json.loads(next(value for name, value in page.attributes if name == "data-points"))
    assert [point[2] for point in points] == [str(step) for step in range(1, 11)]
    assert [point[4] for point in points][:2] == ["1.25", "0.75"]
    assert points[0][:2] == [0.0, pytest.approx(1.0, abs=0.1)]
    assert points[-1][0] == 1.0


def test_nothing_is_fetched(tmp_path):
    html, page = report_of(fakes.write_run(tmp_path / "run"))
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)
    for name, value in page.attributes:
        if name in ("src", "href", "data", "srcset", "action"):
            assert value.startswith("data:")
    assert "link" not in page.tags
    policy = dict(page.attributes)["content"]
    assert any("default-src 'none'" in (v or "") for n, v in page.attributes if n == "content")
    assert policy


HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>&amp;\' $x$'


def test_hostile_strings_are_shown_and_not_run(tmp_path):
    results = [
        {
            "protocol": HOSTILE,
            "numbers": {HOSTILE: 1.0, "top1": 2.0},
            "pictures": {"reconstruction.png": HOSTILE, HOSTILE: "x", "../../secret.png": "y"},
            "details": {HOSTILE: HOSTILE},
        }
    ]
    folder = fakes.write_run(
        tmp_path / "run",
        config={"name": HOSTILE, HOSTILE: HOSTILE},
        environment={"command": HOSTILE, "device_name": HOSTILE, HOSTILE: [HOSTILE]},
        results=results,
    )
    (tmp_path / "secret.png").write_bytes(fakes.PIXEL)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [json.dumps({**json.loads(line), HOSTILE: 1.0}) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    html, page = report_of(folder)
    assert page.tags.count("script") == 1
    assert page.tags.count("img") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in "".join(page.text)
    assert_says(page.words, "../../secret.png")
    assert "<script>alert" not in html


def test_a_run_in_progress(tmp_path):
    folder = fakes.write_run(tmp_path / "run", steps=10, results=None)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 11, "lo')
    _, page = report_of(folder)
    assert "20 % done" in page.words
    assert "1 min 30 s left" in page.words
    assert_says(page.words, "metrics.jsonl")
    assert_says(page.words, "No evaluation")


@pytest.mark.parametrize(
    "gone",
    ["config.json", "environment.json", "metrics.jsonl", "report/evaluation.json", "report/x.png"],
)
@pytest.mark.parametrize("text", [None, "", "[1, 2]", '{"a": ', '"text"', '{"results": 3}'])
def test_missing_and_damaged_files_are_told(tmp_path, gone, text):
    folder = fakes.write_run(tmp_path / "run", steps=3)
    (folder / gone).unlink(missing_ok=True)
    if text is not None:
        (folder / gone).write_text(text)
    run = read_run(folder)
    page = Page(render(run, curves_of(run.metrics)))
    assert "Reproduce" in page.words
    if gone == "metrics.jsonl":
        assert_says(page.words, "No step")
    if gone == "config.json":
        assert "The config is missing." in page.words


def test_a_run_without_a_step_has_no_curves(tmp_path):
    folder = fakes.write_run(tmp_path / "run", steps=0, results=None)
    _, page = report_of(folder)
    assert "0 % done" in page.words
    assert not (folder / "report" / "curves.png").exists()


def test_missing_picture_is_told(tmp_path):
    folder = fakes.write_run(tmp_path / "run", steps=3)
    (folder / "report" / "reconstruction.png").unlink()
    _, page = report_of(folder)
    assert_says(page.words, "reconstruction.png", "read")


def test_pictures_that_were_asked_for_later_are_shown(tmp_path):
    folder = fakes.write_run(tmp_path / "run", steps=3, results=None)
    drawn = folder / "report" / "evaluations" / "step_00000003"
    drawn.mkdir(parents=True)
    (drawn / "map.png").write_bytes(fakes.PIXEL)
    record = {"step": 3, "protocol": {"kind": "feature_map"}, "metrics": {}, "own": False}
    record |= {"folder": "evaluations/step_00000003", "pictures": {"map.png": "A map"}}
    record |= {"overrides": {"protocol": "feature_map"}, "details": {"images": 12}}
    (folder / "report" / "evaluations.jsonl").write_text(json.dumps(record) + "\n")
    _, page = report_of(folder)
    assert_says(page.words, "A map", "images 12")
    assert ("alt", "A map") in page.attributes


def test_steps_that_were_logged_twice_count_once(tmp_path):
    folder = fakes.write_run(tmp_path / "run", steps=5)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write("damaged\n" + json.dumps(fakes.record(4, loss=9.0)) + "\n")
    run = read_run(folder)
    assert [record["step"] for record in run.metrics] == [1, 2, 3, 4, 5]
    assert run.metrics[3]["loss"] == 9.0
    (note,) = run.notes
    assert_says(note, "metrics.jsonl", "1 damaged line")
    assert training_seconds(run) == 2.5


@pytest.mark.parametrize(
    ("train", "share"),
    [
        ({"epochs": 4.0, "steps": None}, 0.2),
        ({"epochs": None, "steps": 20}, 0.5),
        # 10 steps of 8 are 0.8 epochs of 100: the nearest to 0.83.
        ({"epochs": 0.83, "steps": None}, 1.0),
        ({}, None),
        (3, None),
    ],
)
def test_progress(tmp_path, train, share):
    run = read_run(fakes.write_run(tmp_path / "run", steps=10, config={"train": train}))
    assert run.progress == (share if share is None else pytest.approx(share))


def test_refusals(tmp_path):
    with refuses(tmp_path / "missing"):
        write_report(tmp_path / "missing")
    with refuses(tmp_path, "config.json"):
        write_report(tmp_path)


def test_unwritable_report_is_told(tmp_path):
    folder = fakes.write_run(tmp_path / "run", steps=3)
    (folder / "report" / "index.html").mkdir()
    with refuses(folder / "report", "writable"):
        write_report(folder)


def test_numbers_of_glue(tmp_path):
    numbers = {"mcc": 52.125, "score": 52.125}
    glue = {"protocol": "glue", "numbers": numbers, "pictures": {}, "details": {"task": "cola"}}
    fakes.write_run(tmp_path / "run", results=[glue])
    _, page = report_of(tmp_path / "run")
    assert "GLUE score 52.12 cola" in page.words
    assert "GLUE Matthews x 100 52.12" in page.words
    assert "52.12 %" not in page.words
    assert ("style", "width:52.12%") in page.attributes


def test_accuracies_of_the_objective_are_in_percent_and_stand_alone(tmp_path):
    numbers = {"loss": 0.25, "accuracy": 0.975, "accuracy_5": 1.0}
    fakes.write_run(tmp_path / "run", results=[{"protocol": "held_out", "numbers": numbers}])
    _, page = report_of(tmp_path / "run")
    assert "held-out accuracy 97.50 %" in page.words
    assert "held out accuracy 97.50 %" in page.words
    assert "held out accuracy 5 100.00 %" in page.words
    assert "random encoder" not in page.words
