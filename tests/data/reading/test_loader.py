import multiprocessing
import threading
import time

import numpy as np
import pytest
import torch

from errors import refuses
from loading import BATCH, STEPS, VIEW, Images, joined, loader_of
from quadriga.contracts import Share
from quadriga.data.reading.loader import sequential
from quadriga.data.reading.sampling import step_samples
from quadriga.data.views.crops import ImageViewsConfig
from quadriga.distributed.environment import SINGLE
from quadriga.randomness import Stream, fold, fold_numpy


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def reference():
    """The stream of one rank without workers."""
    with loader_of(Images(damaged=[4])) as loader:
        return joined(loader.batches(range(STEPS)))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_stream_is_the_same_on_every_layout(reference, world_size, workers, accumulate):
    """Indices, keys, labels and pixels are equal, a damaged image and its stand-ins included."""
    passes: list[list[dict[str, torch.Tensor]]] = [[] for _ in range(STEPS * accumulate)]
    for rank in range(world_size):
        options = {"share": Share(rank, world_size), "workers": workers, "accumulate": accumulate}
        with loader_of(Images(damaged=[4]), **options) as loader:
            batches = list(loader.batches(range(STEPS)))
        assert len(batches) == STEPS * accumulate
        for i, batch in enumerate(batches):
            passes[i].append(batch)
    # The first micro-batches of all ranks, rank after rank, then the second ones.
    assert_same(joined(batch for parts in passes for batch in parts), reference)


def test_the_reference_is_what_the_parts_say(reference):
    """An independent path: the pure sampling functions, the dataset and the transform, by hand."""
    dataset, position = Images(damaged=[4]), 0
    for step in range(STEPS):
        indices, keys = step_samples(3, len(dataset), BATCH, step)
        for index, key in zip(indices.tolist(), keys.tolist(), strict=True):
            attempt = 0
            while index == 4:
                index = Stream(fold(key, "replacement", attempt)).integer(len(dataset))
                attempt += 1
            sample = {
                name: torch.from_numpy(value)[None]
                for name, value in VIEW.sample(dataset.read(index), key).items()
            }
            expected = VIEW.batch({**sample, "key": torch.tensor([key])})
            for name, value in expected.items():
                assert torch.equal(value[0], reference[name][position])
            assert int(reference["index"][position]) == index
            position += 1
    assert position == len(reference["index"])


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_tail(workers):
    with loader_of(workers=workers, accumulate=2) as loader:
        whole = list(loader.batches(range(6)))
        tail = list(loader.batches(range(4, 6)))
        for one, other in zip(whole[8:], tail, strict=True):
            assert_same(one, other)
    with loader_of(workers=workers, accumulate=2) as fresh:
        assert_same(joined(fresh.batches(range(4, 6))), joined(tail))


def test_an_abandoned_segment_does_not_disturb_the_next():
    with loader_of(workers=2) as loader:
        expected = list(loader.batches(range(2, 5)))
        abandoned = loader.batches(range(0, 5))
        next(abandoned)
        del abandoned
        for one, other in zip(loader.batches(range(2, 5)), expected, strict=True):
            assert_same(one, other)


def test_workers_do_not_touch_the_global_generator():
    before = torch.get_rng_state()
    with loader_of(workers=1) as loader:
        list(loader.batches(range(2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_stay_between_segments_and_end_with_the_loader():
    # Another test's workers and threads may still be on their way out: only ours are counted.
    children, threads = set(multiprocessing.active_children()), set(threading.enumerate())
    loader = loader_of(workers=2)
    list(loader.batches(range(2)))
    first = set(multiprocessing.active_children()) - children
    list(loader.batches(range(2, 4)))
    assert set(multiprocessing.active_children()) - children == first
    assert len(first) == 2
    loader.close()
    assert set(multiprocessing.active_children()) <= children
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= threads
    loader.close()


def test_a_batch_smaller_than_its_parts():
    with refuses("batch", "4 accumulated", "3", "raise"):
        loader_of(batch_size=3, accumulate=4)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("indices", [range(1, 9), np.array([7, 0, 3, 3, 9])])
def test_sequential_takes_every_sample_once_in_order(workers, indices):
    dataset, view = Images(), ImageViewsConfig(image_px=6).build("test")
    batches = list(sequential(dataset, view, indices, batch_size=3, env=SINGLE, workers=workers))
    assert [len(batch["index"]) for batch in batches] == [3] * (len(indices) // 3) + [2]
    whole = joined(batches)
    assert whole["index"].tolist() == list(indices)
    assert torch.equal(
        whole["key"], torch.from_numpy(fold_numpy(fold(0, "evaluate"), np.array(indices)))
    )
    samples = [view.sample(dataset.read(int(i)), 0) for i in indices]
    pixels = torch.from_numpy(np.stack([sample["image"] for sample in samples]))
    assert torch.equal(whole["image"], view.batch({"image": pixels})["image"])
    assert whole["label"].tolist() == [i % 3 for i in indices]
    assert multiprocessing.active_children() == []


def test_sequential_ends_its_workers_when_it_is_abandoned():
    batches = sequential(Images(), VIEW, range(10), batch_size=2, env=SINGLE, workers=2)
    next(batches)
    batches.close()
    assert multiprocessing.active_children() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_is_the_same_on_a_gpu(reference, workers):
    device = torch.device("cuda", 0)
    with loader_of(Images(damaged=[4]), device=device, workers=workers) as loader:
        ours = joined(loader.batches(range(STEPS)))
    for name, value in ours.items():
        assert value.device.type == "cuda"
        if name == "image":
            torch.testing.assert_close(value.cpu(), reference[name], rtol=0, atol=1e-6)
        else:
            assert torch.equal(value.cpu(), reference[name])
