"""Which samples a step has: pure, the same on any ranks, and known at once at any step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from quadriga.contracts import TaskBlocks
from quadriga.data.reading.sampling import step_samples
from quadriga.data.reading.stream import CHUNK, BlockDraws, Part, PlainStream, TaskStream
from quadriga.randomness import Stream, fold

BLOCKS = TaskBlocks(4, {"a": 3, "b": 2, "c": 5}, {"a": 0.5, "b": 0.3, "c": 0.2})
SIZES = {"a": 7, "b": 7, "c": 11}


def stream_of(world_size: int = 1, seed: int = 3) -> TaskStream:
    return TaskStream(seed, SIZES, BlockDraws(seed, BLOCKS), world_size)


def plain(part: Part) -> tuple[range, list[int], list[int], str, float]:
    return part.places, part.index.tolist(), part.key.tolist(), part.task, part.share


def test_a_plain_stream_is_the_samples_of_the_step_cut_into_slots() -> None:
    for world_size, accumulate in ((1, 1), (2, 3), (4, 2)):
        stream = PlainStream(3, 50, 17, world_size, accumulate, repeats=2)
        for step in (0, 5):
            parts = stream.parts(step)
            index, key = step_samples(3, 50, 17, step, repeats=2)
            assert len(parts) == world_size * accumulate
            assert [place for part in parts for place in part.places] == list(range(17))
            assert np.concatenate([part.index for part in parts]).tolist() == index.tolist()
            assert np.concatenate([part.key for part in parts]).tolist() == key.tolist()
            own = [stream.own(step, rank) for rank in range(world_size)]
            dealt = [plain(share[micro]) for micro in range(accumulate) for share in own]
            assert dealt == [plain(part) for part in parts]


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_blocks_are_the_same_on_any_ranks(world_size: int) -> None:
    one, several = stream_of(), stream_of(world_size)
    for step in range(30):
        whole = one.parts(step)
        assert [plain(p) for p in several.parts(step)] == [plain(p) for p in whole]
        for rank in range(world_size):
            for micro, part in enumerate(several.own(step, rank)):
                first = micro * world_size
                assert plain(part) == plain(whole[first + rank])
                at_once = {p.task for p in whole[first : first + world_size]}
                assert {part.task, *part.others} == at_once
                assert list(part.others) == sorted(at_once - {part.task})


def test_a_step_is_of_whole_blocks_without_a_gap() -> None:
    for step in range(20):
        parts = stream_of().parts(step)
        assert [len(part.index) for part in parts] == [BLOCKS.sizes[p.task] for p in parts]
        places = [place for part in parts for place in part.places]
        assert places == list(range(len(places)))
        tasks = [part.task for part in parts]
        assert [part.share for part in parts] == [tasks.count(t) / 4 for t in tasks]


def test_tasks_are_drawn_from_the_seed_with_their_shares() -> None:
    draws, count = BlockDraws(3, BLOCKS), 20_000
    drawn = draws.draw(0, count)
    source = Stream(fold(3, "task blocks"))
    for number in drawn[:200].tolist():
        uniform = source.uniform()
        assert number == int(uniform >= 0.5) + int(uniform >= 0.8)
    for number, share in enumerate(BLOCKS.shares.values()):
        found, deviation = (drawn == number).mean(), np.sqrt(share * (1 - share) / count)
        assert abs(found - share) < 4 * deviation
    assert draws.draw(123, 50).tolist() == drawn[123:173].tolist()
    assert drawn.tolist() != BlockDraws(4, BLOCKS).draw(0, count).tolist()


def test_blocks_are_counted_as_a_loop_would_in_any_order() -> None:
    draws = BlockDraws(3, BLOCKS)
    drawn = draws.draw(0, 3 * CHUNK)
    for block in (2 * CHUNK + 17, 0, CHUNK, 5, 2 * CHUNK - 1, 3 * CHUNK):
        assert draws.before(block).tolist() == [int((drawn[:block] == n).sum()) for n in range(3)]
    samples = itertools.accumulate(
        sum(len(part.index) for part in stream_of().parts(step)) for step in range(50)
    )
    assert [draws.samples_before(step) for step in range(1, 51)] == list(samples)


def test_a_resumed_run_is_where_the_count_says_after_a_million_steps() -> None:
    step = 1_000_000
    count = np.bincount(BlockDraws(3, BLOCKS).draw(0, step * 4), minlength=3)
    done = dict(zip(BLOCKS.shares, count.tolist(), strict=True))
    for part in stream_of(2).parts(step):
        size, task = BLOCKS.sizes[part.task], part.task
        epoch, _ = divmod(done[task] * size, SIZES[task])
        # A run of that task alone would be at the same place of the same epoch.
        seed, start = fold(3, "task", task), done[task] * size
        samples = [step_samples(seed, SIZES[task], 1, start + n) for n in range(size)]
        assert part.index.tolist() == [int(index[0]) for index, _ in samples]
        assert part.key.tolist() == [int(key[0]) for _, key in samples]
        assert epoch > 100_000
        done[task] += 1


def test_every_epoch_of_a_task_is_a_whole_permutation() -> None:
    read: dict[str, list[int]] = {task: [] for task in SIZES}
    keys: dict[str, list[int]] = {task: [] for task in SIZES}
    for step in range(60):
        for part in stream_of(4).parts(step):
            read[part.task] += part.index.tolist()
            keys[part.task] += part.key.tolist()
    for task, size in SIZES.items():
        epochs = len(read[task]) // size
        assert epochs > 5
        orders = [read[task][size * n : size * (n + 1)] for n in range(epochs)]
        assert all(sorted(order) == list(range(size)) for order in orders)
        assert len({tuple(order) for order in orders}) > 1
        assert len(set(keys[task])) == len(keys[task])
    assert read["a"][:14] != read["b"][:14], "equal data sets are seen in orders of their own"
    assert not {*keys["a"]} & {*keys["b"]}
