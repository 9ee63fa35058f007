"""The graph of a workflow as an SVG picture: a column for each step of waiting."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from quadriga.engine.logs.status import RunState
from quadriga.engine.workflow_graph import Needs, levels_of
from quadriga.formatting import measured

BOX_WIDTH, BOX_HEIGHT = 212, 58
_GAP_ACROSS, _GAP_DOWN, _MARGIN = 56, 16, 4


def places_of(needs: Needs) -> dict[str, tuple[int, int]]:
    """Return the upper left corner of each node's box, in pixels; columns are centred.

    Args:
        needs: The graph; nodes of one column keep its order.
    """
    levels = levels_of(needs)
    columns: dict[int, list[str]] = {}
    for name in needs:
        columns.setdefault(levels[name], []).append(name)
    tallest = max(map(len, columns.values()))
    pitch = BOX_HEIGHT + _GAP_DOWN
    places = {}
    for level, names in columns.items():
        top = _MARGIN + (tallest - len(names)) * pitch // 2
        for row, name in enumerate(names):
            places[name] = (_MARGIN + level * (BOX_WIDTH + _GAP_ACROSS), top + row * pitch)
    return places


def graph_picture(
    needs: Needs, states: Mapping[str, RunState], result: str, links: Mapping[str, str]
) -> str:
    """Return the picture, as an ``<svg>`` element.

    Args:
        needs: The graph.
        states: Node -> where its run is.
        result: The node whose model is wanted; its box has a thicker line.
        links: Node -> where its own report is, for those that have one.
    """
    places = places_of(needs)
    width = max(x for x, _ in places.values()) + BOX_WIDTH + _MARGIN
    height = max(y for _, y in places.values()) + BOX_HEIGHT + _MARGIN
    edges = "".join(_edge(places[other], places[name]) for name in needs for other in needs[name])
    boxes = "".join(
        _box(name, places[name], states[name], name == result, links.get(name)) for name in needs
    )
    return f"""<div class="card scroll graph"><svg role="img" aria-label="graph of the runs"
width="{width}" height="{height}" viewBox="0 0 {width} {height}">{edges}{boxes}</svg></div>"""


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x, y = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT // 2
    to_x, to_y = end[0], end[1] + BOX_HEIGHT // 2
    bend = (to_x - x) // 2 if to_x > x else _GAP_ACROSS // 2
    return f'<path class="edge" d="M{x},{y}C{x + bend},{y} {to_x - bend},{to_y} {to_x},{to_y}"/>'


def _box(
    name: str, place: tuple[int, int], state: RunState, is_result: bool, link: str | None
) -> str:
    x, y = place
    share = min(1.0, state.step / state.total_steps) if state.total_steps else 0.0
    found: str = state.state
    if state.metric is not None and state.value is not None:
        value = measured(state.metric, state.value)
        found = f"{state.state} \N{MIDDLE DOT} {_last(state.metric)} {value}"
    kind = f"box {state.state}{' result' if is_result else ''}"
    drawn = (
        f'<g class="{kind}"><title>{escape(name)}: {escape(found)}</title>'
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="9"></rect>'
        f'<rect class="done" x="{x + 12}" y="{y + BOX_HEIGHT - 9}" height="3" rx="1.5"'
        f' width="{share * (BOX_WIDTH - 24):.1f}"></rect>'
        f'<text class="name" x="{x + 12}" y="{y + 21}">{escape(_fit(name, 22))}</text>'
        f'<text x="{x + 12}" y="{y + 39}">{escape(_fit(found, 28))}</text></g>'
    )
    return drawn if link is None else f'<a href="{escape(link)}">{drawn}</a>'


def _last(metric: str) -> str:
    return metric.rpartition(".")[2].replace("_", " ")


def _fit(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}\N{HORIZONTAL ELLIPSIS}"
