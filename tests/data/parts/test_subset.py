"""A part of a data set: keyed, in order, without repetition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quadriga.contracts import Dataset
from quadriga.data.parts.subsets import Subset


class Numbers(Dataset):
    """Record i is ten times i."""

    classes = ("even", "odd")

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def read(self, index: int) -> int:
        assert type(index) is int
        return 10 * index

    def name(self, index: int) -> str:
        return f"number {index}"


@given(size=st.integers(0, 60), count=st.integers(0, 70), seed=st.integers(0, 5))
def test_a_part_is_in_order_without_repetition(size: int, count: int, seed: int) -> None:
    part = Subset(Numbers(size), count, seed)
    records = [part.read(i) for i in range(len(part))]
    assert len(part) == min(size, count)
    assert records == sorted(set(records))
    assert set(records) <= {10 * i for i in range(size)}
    assert [part.name(i) for i in range(len(part))] == [f"number {r // 10}" for r in records]
    again = Subset(Numbers(size), count, seed)
    assert [again.read(i) for i in range(len(again))] == records
    assert part.classes == ("even", "odd")


def test_a_smaller_part_is_a_part_of_the_larger() -> None:
    small, large = (Subset(Numbers(200), count, 3) for count in (20, 90))
    inside = {large.read(i) for i in range(90)}
    assert {small.read(i) for i in range(20)} < inside


def test_the_seed_chooses() -> None:
    first, second = (Subset(Numbers(200), 20, seed) for seed in (0, 1))
    assert [first.read(i) for i in range(20)] != [second.read(i) for i in range(20)]
