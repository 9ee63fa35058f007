import multiprocessing
import os
import re
import signal
import time

import numpy as np
import pytest
import torch

from errors import refuses
from loading import BATCH, VIEW, Images, joined, loader_of
from quadriga.contracts import Transform, UnreadableSample
from quadriga.data.reading.loader import sequential
from quadriga.data.reading.sampling import step_samples
from quadriga.distributed.environment import SINGLE
from quadriga.errors import UserError


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_samples_are_named_once_counted_and_replaced(workers):
    told: list[str] = []
    options = {"workers": workers, "warn": told.append}
    with loader_of(Images(damaged=[2, 7]), **options) as loader:
        batch = joined(loader.batches(range(5)))
        assert loader.unreadable == 2
    assert sorted(line.split(":")[1].strip() for line in told) == ["image 2", "image 7"]
    assert all("Truncated File Read" in line for line in told)
    assert not {2, 7} & set(batch["index"].tolist())
    assert len(batch["index"]) == 5 * BATCH
    indices = np.concatenate([step_samples(3, 10, BATCH, step)[0] for step in range(5)])
    untouched = ~np.isin(indices, [2, 7])
    np.testing.assert_array_equal(batch["index"].numpy()[untouched], indices[untouched])


def test_the_default_warning_goes_to_the_log(caplog):
    with loader_of(Images(damaged=[2]), warn=None) as loader:
        list(loader.batches(range(1)))
    assert [(r.name, r.levelname) for r in caplog.records] == [("quadriga", "WARNING")]


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_unreadable_samples_stop_the_run_after_an_epoch(workers):
    dataset = Images(40, range(0, 40, 8))
    with loader_of(dataset, max_unreadable_fraction=0.1, workers=workers) as loader:
        batches = loader.batches(range(20))
        for _ in range(40 // BATCH):
            next(batches)
        with refuses("loader.max_unreadable_fraction", "0.1", "5 of 40", "12.5%"):
            next(batches)
    assert multiprocessing.active_children() == []


def test_a_share_below_the_limit_does_not_stop_the_run():
    with loader_of(Images(40, range(0, 40, 8)), max_unreadable_fraction=0.125) as loader:
        assert len(list(loader.batches(range(10)))) == 10


def test_twenty_unreadable_samples_are_enough_to_decide():
    with loader_of(Images(400, range(0, 400, 2)), max_unreadable_fraction=0.1) as loader:
        with refuses("loader.max_unreadable_fraction") as caught:
            list(loader.batches(range(400 // BATCH)))
    assert re.search(r"\b[23]\d of \d\d\b", str(caught.value))


def test_none_allowed_stops_at_the_first():
    first = int(step_samples(3, 400, BATCH, 0)[0][0])
    with loader_of(Images(400, [first]), max_unreadable_fraction=0.0) as loader:
        with refuses("loader.max_unreadable_fraction", "1 of 13"):
            next(loader.batches(range(1)))


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_stops_at_once(workers):
    with loader_of(Images(10, range(10)), workers=workers) as loader:
        with refuses("none of 17", "image"):
            next(loader.batches(range(1)))


class Fatal(Transform):
    """Kills the worker, or raises what it is told to, at one sample."""

    def __init__(self, error=None):
        self.error = error

    def sample(self, record, key):
        if record.name == "image 5":
            if self.error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise self.error
        return {"image": np.zeros((3, 2, 2), np.uint8)}

    def batch(self, batch):
        return batch

    def example(self, size, device):
        return {"image": torch.zeros(size, 3, 2, 2, device=device)}


def test_a_worker_that_dies_is_one_line():
    with loader_of(transform=Fatal(), workers=2) as loader:
        with refuses("died", "pid", "loader.workers=0"):
            list(loader.batches(range(3)))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_user_error_crosses_from_a_worker_as_it_was(workers):
    with loader_of(transform=Fatal(UserError("what, rule, remedy")), workers=workers) as loader:
        with pytest.raises(UserError) as caught:
            list(loader.batches(range(3)))
    assert str(caught.value) == "what, rule, remedy"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_programming_error_stays_what_it_was(workers):
    with loader_of(transform=Fatal(RuntimeError("a bug")), workers=workers) as loader:
        with refuses("a bug", error=RuntimeError):
            list(loader.batches(range(3)))


def test_sequential_leaves_unreadable_samples_out():
    told: list[str] = []
    dataset = Images(damaged=[0, 1, 5])
    options = {"batch_size": 2, "env": SINGLE, "workers": 0, "warn": told.append}
    batches = list(sequential(dataset, VIEW, range(10), **options))
    assert joined(batches)["index"].tolist() == [2, 3, 4, 6, 7, 8, 9]
    assert [len(batch["index"]) for batch in batches] == [2, 1, 2, 2]
    assert len(told) == 3
    with refuses("none of 2", "image 1"):
        list(sequential(dataset, VIEW, range(2), **options))
    assert list(sequential(dataset, VIEW, range(0), **options)) == []


def test_an_unreadable_record_counts_like_an_unreadable_image():
    class Refusing(Images):
        def read(self, index):
            if index == 1:
                raise UnreadableSample("image 1: gone")
            return super().read(index)

    with loader_of(Refusing()) as loader:
        batch = joined(loader.batches(range(2)))
        assert loader.unreadable == 1
    assert 1 not in batch["index"].tolist()


def test_a_worker_that_dies_is_told_when_its_batch_is_asked_for():
    with loader_of(Images(40), workers=1) as loader:
        batches = loader.batches(range(200))
        next(batches)
        (worker,) = multiprocessing.active_children()
        worker.kill()
        time.sleep(0.5)  # the signal of its end arrives here, in the middle of anything
        with refuses("died", "pid", "loader.workers=0"):
            list(batches)
