"""The best cut against every cut, and placements against what can be counted by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from errors import refuses
from quadriga.pipeline.config import PipelineConfig
from quadriga.pipeline.planner.cost import Placement
from quadriga.pipeline.planner.profile import Link, Network
from quadriga.pipeline.planner.search import best_cut, most_blocks
from quadriga.pipeline.topology import make_conf, make_topology, write_conf


def every_cut(blocks: int, stages: int) -> list[tuple[int, ...]]:
    ranges = [range(1, blocks + 1)] * (stages - 1) + [range(blocks + 1)]
    return [cut for cut in itertools.product(*ranges) if sum(cut) == blocks]


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[int, list[int], list[int], list[int]]:
    stages = draw(st.integers(1, 4))
    blocks = draw(st.integers(max(1, stages - 1), 7))
    numbers = st.lists(st.integers(0, 9), min_size=stages, max_size=stages)
    return blocks, draw(numbers), draw(numbers), [1 + n for n in draw(numbers)]


@given(pipelines())
@hypothesis_settings(max_examples=120)
def test_best_cut_is_the_best_of_all(case: tuple[int, list[int], list[int], list[int]]) -> None:
    blocks, fixed, each, most = case

    def cost(stage: int, count: int) -> float:
        return fixed[stage] + each[stage] * count

    stages = len(fixed)
    found = best_cut(blocks, stages, cost, most)
    allowed = [
        cut
        for cut in every_cut(blocks, stages)
        if all(n <= high for n, high in zip(cut, most, strict=True))
        and (stages > 1 or cut == (blocks,))
    ]
    if not allowed:
        assert found is None
        return
    assert found in allowed
    assert max(cost(s, n) for s, n in enumerate(found)) == min(
        max(cost(s, n) for s, n in enumerate(cut)) for cut in allowed
    )


def test_equal_stages_get_equal_blocks() -> None:
    assert best_cut(24, 4, lambda stage, blocks: float(blocks)) == (6, 6, 6, 6)
    heavy_ends = best_cut(24, 4, lambda s, n: n + (2.0 if s in (0, 3) else 0.0))
    assert heavy_ends == (5, 7, 7, 5)


def test_most_blocks_that_fit() -> None:
    assert most_blocks(7, 3, lambda stage, blocks: stage * blocks <= 4 and stage < 2) == [7, 4, -1]


FAST, SLOW = Link(bandwidth=100.0, latency=0.0), Link(bandwidth=10.0, latency=1.0)


def test_messages_between_nodes_share_what_joins_them() -> None:
    network = Network(within=FAST, between=SLOW, ranks_per_node=4)
    apart = Placement(network, width=4, depth=2)  # each stage has a node of its own
    assert apart.transfer_seconds(0, 10) == 1 + 4 * 10 / 10
    assert apart.reduce_seconds(0, 100) == pytest.approx(2 * 3 / 4 * 100 / 100)
    together = Placement(network, width=1, depth=4)
    assert together.transfer_seconds(2, 10) == 10 / 100
    across = Placement(network, width=1, depth=8)  # one pair of eight is on two nodes
    assert [across.transfer_seconds(s, 10) for s in range(7)] == [0.1, 0.1, 0.1, 2, 0.1, 0.1, 0.1]
    whole = Placement(network, width=8, depth=1)
    assert whole.reduce_seconds(0, 100) == pytest.approx(6 * 1 + 2 * 7 / 8 * 100 / 10)
    assert whole.tie_seconds(100) == 0
    assert apart.tie_seconds(10) == pytest.approx(2 * 1 + 10 * 4 / 10)


def test_one_node_has_one_kind_of_link() -> None:
    network = Network(within=FAST, between=SLOW, ranks_per_node=None)
    placement = Placement(network, width=8, depth=8)
    assert placement.transfer_seconds(3, 50) == 0.5
    assert placement.reduce_seconds(3, 100) == pytest.approx(2 * 7 / 8)


@pytest.mark.parametrize(
    ("depths", "width"), [((4,), 3), ((2, 2), 2), ((1, 2, 1), 1), ((1, 3, 0), 2), ((1, 1, 1, 1), 2)]
)
def test_conf_says_what_training_reads(depths: tuple[int, ...], width: int, tmp_path) -> None:
    path = tmp_path / "conf.json"
    write_conf(path, depths, width)
    config = PipelineConfig(conf=path, schedule="2bw")
    topology = make_topology(config, 4, width * len(depths))
    assert topology.depths == depths
    assert topology.ranks == tuple(
        tuple(range(s * width, (s + 1) * width)) for s in range(len(depths))
    )
    assert len(make_conf(depths, width)["module_to_stage_map"]) == 5
    assert [file.name for file in tmp_path.iterdir()] == ["conf.json"]


def test_a_stage_without_a_module_cannot_be_said() -> None:
    with refuses("block", error=ValueError):
        make_conf((0, 4), 1)
