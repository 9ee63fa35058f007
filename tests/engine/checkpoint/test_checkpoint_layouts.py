"""What any layout saved, any layout loads; and who writes which part."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from errors import refuses
from quadriga.engine.checkpoint.write import Chunk, assign, inventory
from ranks import run_ranks

LAYOUTS = {"plain-1"} | {f"{form}-{n}" for form in ("plain", "fsdp", "hsdp") for n in (2, 4)}


def test_every_layout_loads_what_every_other_saved(tmp_path: Path) -> None:
    """1, 2 and 4 ranks, plain, FSDP and HSDP: uneven and empty shards, all types, bit for bit."""
    worker = str(Path(__file__).with_name("layout_worker.py"))
    pairs = set()
    for phase in ("save", "load"):
        for world_size in (1, 2, 4):
            for rank in run_ranks([sys.executable, worker, str(tmp_path), phase], world_size):
                assert rank.returncode == 0, rank.stderr
                if phase == "load":
                    pairs |= {tuple(pair) for pair in json.loads(rank.stdout)}
    assert pairs == {(saved, loaded) for saved in LAYOUTS for loaded in LAYOUTS}


def chunk(name: str, size: int, offset: int = 0, whole: int | None = None) -> Chunk:
    return Chunk(name, (whole or size,), (offset,), (size,), torch.uint8)


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=30),
    st.integers(1, 8),
)
def test_replicas_share_the_writing_evenly(sizes: list[int], ranks: int) -> None:
    chunks = [chunk(f"t{place}", size) for place, size in enumerate(sizes)]
    given_ = assign([chunks] * ranks)
    written = [c for part in given_ for c in part]
    assert sorted(written, key=lambda c: c.name) == sorted(chunks, key=lambda c: c.name)
    loads = [sum(c.bytes for c in part) for part in given_]
    assert max(loads) - min(loads) <= max(sizes)


def test_a_shard_is_written_by_one_of_its_replicas() -> None:
    """HSDP on 2 x 2 ranks: two copies of each half."""
    halves = [chunk("w", 4, 0, 8), chunk("w", 4, 4, 8)]
    given_ = assign([[halves[0]], [halves[1]], [halves[0]], [halves[1]]])
    assert given_ == [[halves[0]], [halves[1]], [], []]


def test_names_of_one_rank_alone_are_written() -> None:
    """The stages of a pipeline hold different tensors."""
    assert assign([[chunk("a", 4)], [chunk("b", 4)]]) == [[chunk("a", 4)], [chunk("b", 4)]]


def test_a_tensor_that_is_not_whole_is_refused() -> None:
    with refuses("w", "8 elements", "4", error=ValueError):
        assign([[chunk("w", 4, 0, 8)], []])


def test_what_is_no_tensor_is_refused() -> None:
    with refuses("executor.steps", "int", error=TypeError):
        inventory({"executor.steps": 3})
