"""Workers where shared memory or open files are scarce: the same batches, or one line."""

from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator
from itertools import islice

import pytest
import torch

from errors import refuses
from loading import STEPS, joined, loader_of
from quadriga.data.reading import workers as reading

LIMIT = resource.RLIMIT_NOFILE


@pytest.fixture
def few_files() -> Iterator[Callable[[int], None]]:
    """Leave room for so many open files beside those that are open now."""
    before = resource.getrlimit(LIMIT)

    def leave(more: int) -> None:
        used = {int(number) for number in os.listdir("/proc/self/fd")}
        free = (number for number in range(before[0]) if number not in used)
        limit = next(islice(free, more, None))
        resource.setrlimit(LIMIT, (limit, before[1]))

    yield leave
    resource.setrlimit(LIMIT, before)


def batches(workers: int, **options: int) -> list[dict[str, torch.Tensor]]:
    with loader_of(workers=workers, **options) as loader:
        return list(loader.batches(range(STEPS)))


def assert_as_without_workers(found: list[dict[str, torch.Tensor]]) -> None:
    for name, tensor in joined(batches(0)).items():
        assert torch.equal(joined(found)[name], tensor), name


def test_batches_that_do_not_fit_into_shared_memory_are_sent_through_the_pipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert any(tensor.is_shared() for tensor in batches(2)[0].values())
    monkeypatch.setattr(reading, "shared_memory_free", lambda: 0)
    found = batches(2)
    assert not any(tensor.is_shared() for tensor in found[0].values())
    assert_as_without_workers(found)


def test_few_open_files_are_enough(few_files: Callable[[int], None]) -> None:
    few_files(40)
    assert_as_without_workers(batches(2, prefetch=16))


def test_too_few_open_files_are_one_line(few_files: Callable[[int], None]) -> None:
    few_files(6)
    with refuses("ulimit -n", "loader.workers"):
        batches(2)
    assert not multiprocessing.active_children()
