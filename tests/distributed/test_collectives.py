"""Shares of a range, and what collectives do in a world of one and of two."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from errors import refuses
from quadriga.distributed.collectives import (
    all_gather_values,
    all_reduce_sum,
    barrier,
    broadcast_value,
    from_main,
    on_all,
    slice_of,
)
from quadriga.distributed.environment import SINGLE
from quadriga.errors import UserError
from ranks import run_ranks

WORKER = Path(__file__).resolve().parent / "collectives_worker.py"


@given(total=st.integers(0, 10_000), world_size=st.integers(1, 300))
def test_shares_are_contiguous_and_even(total: int, world_size: int) -> None:
    shares = [slice_of(total, rank, world_size) for rank in range(world_size)]
    assert shares[0].start == 0
    assert shares[-1].stop == total
    assert all(left.stop == right.start for left, right in pairwise(shares))
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= 1


def test_a_world_of_one_changes_nothing() -> None:
    tensor = torch.tensor([1.0, 2.0])
    assert all_reduce_sum(tensor, SINGLE) is tensor
    assert tensor.tolist() == [1.0, 2.0]
    box = object()
    assert broadcast_value(box, SINGLE) is box
    assert all_gather_values(box, SINGLE) == [box]
    assert from_main(lambda: box, SINGLE) is box
    assert on_all(lambda: box, SINGLE) is box
    barrier(SINGLE)


def test_an_error_in_a_world_of_one_is_the_error() -> None:
    def fail() -> None:
        raise UserError("no such thing")

    for collective in (from_main, on_all):
        with refuses("no such thing"):
            collective(fail, SINGLE)


def test_two_ranks(tmp_path: Path) -> None:
    for rank in run_ranks([sys.executable, str(WORKER), str(tmp_path)], 2):
        assert rank.returncode == 0, rank.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == {
        "sum": [1.0, 11.0],
        "broadcast": "from 0",
        "gathered": [[0, "zero"], [1, "one"]],
        "from_main": 100,
        "calls": 1,
        "on_all": 0,
        "error": ["rank 0 cannot", True],
        "lone error": ["rank 1 cannot", True],
        "after": 2,
    }
    assert found[1] == {**found[0], "calls": 0, "on_all": 1}
