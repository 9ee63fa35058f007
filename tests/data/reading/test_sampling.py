import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import refuses
from quadriga.data.reading.sampling import deal, step_samples
from quadriga.randomness import fold

MASK = 2**64 - 1


@settings(deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 300), st.integers(1, 70))
def test_every_epoch_is_a_permutation(seed, dataset_size, batch_size):
    steps = -(-2 * dataset_size // batch_size)
    stream = np.concatenate(
        [step_samples(seed, dataset_size, batch_size, step)[0] for step in range(steps)]
    )
    assert stream.dtype == np.int64
    for epoch in range(2):
        part = stream[epoch * dataset_size : (epoch + 1) * dataset_size]
        assert sorted(part.tolist()) == list(range(dataset_size))


@settings(deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 50), st.integers(1, 20), st.integers(1, 6))
def test_the_stream_does_not_depend_on_the_batch_size(seed, dataset_size, small, times):
    large = step_samples(seed, dataset_size, small * times, 3)
    parts = [step_samples(seed, dataset_size, small, 3 * times + i) for i in range(times)]
    for whole, pieces in zip(large, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(pieces))


def test_keys_are_the_folds_they_claim_to_be():
    index, key = step_samples(7, 5, 4, 2)
    expected = [fold(7, "sample", p // 5, int(i)) for p, i in zip(range(8, 12), index, strict=True)]
    assert [k & MASK for k in key.tolist()] == expected


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = step_samples(0, 100, 100, 0)[0], step_samples(0, 100, 100, 1)[0]
    other = step_samples(1, 100, 100, 0)[0]
    assert (first != second).any()
    assert (first != other).any()
    assert (first != np.arange(100)).any()


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 50))
def test_slots_are_dealt_pass_by_pass_in_order(world_size, accumulate, spare):
    batch_size = world_size * accumulate + spare
    dealt = deal(batch_size, world_size, accumulate)
    parts = [dealt[rank][number] for number in range(accumulate) for rank in range(world_size)]
    assert [slot for part in parts for slot in part] == list(range(batch_size))
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


def test_fewer_samples_than_micro_batches():
    with refuses("2 ranks", "4", "7"):
        deal(7, 2, 4)


@settings(deadline=None)
@given(
    st.integers(0, 2**40),
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(1, 7),
    st.integers(0, 9),
)
def test_repeats_show_the_next_of_the_stream_again_and_again(
    seed, dataset_size, batch_size, repeats, step
):
    different = -(-batch_size // repeats)
    index, key = step_samples(seed, dataset_size, batch_size, step, repeats)
    plain, plain_key = step_samples(seed, dataset_size, different, step)
    for slot in range(batch_size):
        repeat, place = divmod(slot, different)
        epoch = (step * different + place) // dataset_size
        parts = ("repeat", repeat) if repeat else ()
        assert index[slot] == plain[place]
        assert int(key[slot]) & MASK == fold(seed, "sample", epoch, *parts, int(index[slot]))
    np.testing.assert_array_equal(key[:different], plain_key)
    counts = np.unique(np.arange(batch_size) % different, return_counts=True)[1]
    assert counts.max() <= repeats
    assert counts.max() - counts.min() <= 1


@settings(deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 60), st.integers(2, 30), st.integers(2, 4))
def test_no_two_views_are_equal_and_repeats_are_apart(seed, dataset_size, different, repeats):
    index, key = step_samples(seed, dataset_size, different * repeats, 2, repeats)
    assert len(set(key.tolist())) == different * repeats
    if different <= dataset_size // 2:
        epochs = np.arange(2 * different, 3 * different) // dataset_size
        if epochs[0] == epochs[-1]:
            assert (index[1:] != index[:-1]).all()


def test_an_epoch_of_the_stream_has_every_sample_repeats_times():
    seen = np.concatenate([step_samples(5, 12, 9, step, 3)[0] for step in range(4)])
    assert np.bincount(seen).tolist() == [3] * 12
