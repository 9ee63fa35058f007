"""The graph of a workflow: edges, order, and the sentences on what is wrong with it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import refuses
from quadriga.recipes.mae import mae_digits
from quadriga.workflow.graph import (
    Node,
    Workflow,
    bind,
    check_graph,
    levels_of,
    matching,
    needs_of,
    order_of,
    references,
    with_all_needed,
)
from workflows import diamond

PLAIN = mae_digits()


def node(name, *needs):
    return Node(name, PLAIN.override({"warm_start.path": f"@{needs[0]}"}) if needs else PLAIN)


def workflow(*nodes, result="a"):
    return Workflow("w", tuple(nodes), result)


def test_edges_are_the_references_in_the_configs():
    assert needs_of(diamond()) == {
        "last": ("left",),
        "left": ("first",),
        "right": ("first",),
        "first": (),
    }
    assert references(node("b", "a").config) == {"warm_start.path": ["a"]}


def test_references_become_directories_and_nothing_else_changes():
    config = node("b", "a").config
    bound = bind(config, lambda name: f"/runs/{name}")
    assert bound == config.override({"warm_start.path": "/runs/a"})


def test_references_in_lists_are_found():
    """As in modular.modules."""
    config = PLAIN.override({"optim.no_decay": ["@a", "bias", "@b"]})
    assert references(config) == {"optim.no_decay": ["a", "b"]}
    assert bind(config, str.upper).optim.no_decay == ("A", "bias", "B")


@pytest.mark.parametrize(
    ("wrong", "fragments"),
    [
        (workflow(node("a"), node("a")), ("two nodes", "a")),
        (workflow(node("a", "bb"), node("b")), ("@bb", "b")),
        (workflow(node("a", "b"), node("b", "a")), ("a needs b needs a",)),
        (workflow(node("a", "a")), ("a needs a",)),
        (workflow(node("b"), result="a"), ("result", "'a'")),
        (workflow(node("report"), node("a")), ("'report'",)),
        (workflow(node("../a"), node("a")), ("'../a'",)),
        (
            dataclasses.replace(workflow(node("a")), reference=node("b", "a").config),
            ("reference", "warm_start.path"),
        ),
    ],
)
def test_what_is_wrong_with_a_graph_is_one_sentence(wrong, fragments):
    with refuses(*fragments):
        check_graph(wrong)


@given(st.permutations(range(6)), st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5))))
def test_every_node_comes_after_what_it_needs(names, pairs):
    needs = {n: tuple(low for low, high in sorted(pairs) if low < high == n) for n in names}
    order = order_of(needs)
    assert sorted(order) == sorted(needs)
    levels = levels_of(needs)
    for name in needs:
        assert all(order.index(other) < order.index(name) for other in needs[name])
        assert levels[name] == max((levels[other] + 1 for other in needs[name]), default=0)
        above = {o for other in needs[name] for o in with_all_needed(needs, other)}
        assert with_all_needed(needs, name) == {name} | above


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name():
    names = ["meta", "module_0", "module_1"]
    assert matching("module_*", names, "x") == ["module_0", "module_1"]
    with refuses("modul_0", "module_0"):
        matching("modul_0", names, "x")
