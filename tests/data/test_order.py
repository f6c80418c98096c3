"""The order of samples against its definition, for arbitrary sizes."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.data.order import Order


def make_order(**changes) -> Order:
    values = {
        "shard_sizes": (7, 30, 1, 0, 22, 13),
        "batch_size": 8,
        "num_groups": 3,
        "streams_per_group": 2,
        "window": 5,
        "seed": (1, 2),
    }
    return Order(**{**values, **changes})


@st.composite
def orders(draw) -> Order:
    streams = draw(st.sampled_from([1, 2, 4]))
    sizes = draw(st.lists(st.integers(0, 30), min_size=1, max_size=8))
    batch_size = streams * draw(st.integers(1, 4))
    if sum(sizes) < batch_size:
        sizes.append(batch_size)
    return make_order(
        shard_sizes=tuple(sizes),
        batch_size=batch_size,
        num_groups=draw(st.integers(1, 5)),
        streams_per_group=streams,
        window=draw(st.integers(1, 20)),
        seed=(draw(st.integers(0, 2**40)), 3),
    )


def stored(order: Order, epoch: int, group: int, stream: int) -> list[tuple[int, int]]:
    """Shard and row of a stream's samples, before they are permuted."""
    runs = order.runs(epoch=epoch, group=group, stream=stream)
    return [(run.shard, row) for run in runs for row in range(run.start, run.stop)]


def stream_samples(order: Order, epoch: int, group: int, stream: int) -> list[tuple[int, int]]:
    """Shard and row of a stream's samples as they are served."""
    places = stored(order, epoch, group, stream)
    served = []
    for start in range(0, len(places), order.window):
        offsets = order.window_permutation(epoch=epoch, group=group, stream=stream, position=start)
        served += [places[start + int(offset)] for offset in offsets]
    return served


def epoch_batches(order: Order, epoch: int) -> list[list[tuple[int, int]]]:
    streams = {
        (group, stream): iter(stream_samples(order, epoch, group, stream))
        for group in range(order.num_groups)
        for stream in range(order.streams_per_group)
    }
    return [
        [
            next(streams[batch % order.num_groups, stream])
            for stream in range(order.streams_per_group)
            for _ in range(order.stream_batch)
        ]
        for batch in range(order.batches_per_epoch)
    ]


@given(orders(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_an_epoch_has_every_place_once_and_no_sample_twice(order, epoch):
    samples = [sample for batch in epoch_batches(order, epoch) for sample in batch]
    assert len(samples) == order.batches_per_epoch * order.batch_size
    assert max(Counter(samples).values(), default=1) == 1
    assert all(0 <= row < order.shard_sizes[shard] for shard, row in samples)


@given(orders(), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_streams_are_whole_after_an_epoch(order, epoch):
    for group in range(order.num_groups):
        batches = len(range(group, order.batches_per_epoch, order.num_groups))
        assert order.stream_length(group) == batches * order.stream_batch
        for stream in range(order.streams_per_group):
            assert len(stored(order, epoch, group, stream)) == order.stream_length(group)


@given(orders())
@settings(max_examples=50, deadline=None)
def test_windows_permute_within_themselves_only(order):
    for group in range(order.num_groups):
        places = stored(order, 0, group, 0)
        served = stream_samples(order, 0, group, 0)
        for start in range(0, len(places), order.window):
            window = slice(start, start + order.window)
            assert sorted(served[window]) == sorted(places[window])


def test_storage_is_read_in_runs():
    """Streams read forward through shards, so that their number of opened files stays small."""
    order = make_order()
    line = [place for g in range(3) for s in range(2) for place in stored(order, 0, g, s)]
    jumps = sum(b != (a[0], a[1] + 1) for a, b in pairwise(line))
    assert jumps <= len(order.shard_sizes)


def test_windows_differ_in_their_permutation():
    order = make_order(shard_sizes=(1000,), window=16)
    seen = {
        tuple(order.window_permutation(epoch=epoch, group=group, stream=stream, position=position))
        for epoch in (0, 1)
        for group in (0, 1)
        for stream in (0, 1)
        for position in (0, 16)
    }
    assert len(seen) == 16


def test_every_position_of_a_window_sees_the_same_permutation():
    order = make_order(shard_sizes=(1000,), window=16)
    first, *others = (
        order.window_permutation(epoch=0, group=0, stream=0, position=position).tolist()
        for position in range(16, 32)
    )
    assert all(other == first for other in others)


def test_order_depends_on_the_seed_and_the_epoch():
    order, other = make_order(), make_order(seed=(2, 2))
    assert epoch_batches(order, 0) == epoch_batches(make_order(), 0)
    assert epoch_batches(order, 0) != epoch_batches(other, 0)
    assert epoch_batches(order, 0) != epoch_batches(order, 1)


def test_shards_stand_in_another_circle_for_each_seed_and_epoch():
    circles = set()
    for seed in range(4):
        for epoch in range(4):
            order = make_order(
                shard_sizes=(1,) * 64, batch_size=64, num_groups=1, streams_per_group=1, seed=(seed,)
            )
            line = [run.shard for run in order.runs(epoch=epoch, group=0, stream=0)]
            start = line.index(0)
            circles.add(tuple(line[start:] + line[:start]))
    assert len(circles) == 16


def test_what_an_epoch_leaves_out_differs_by_epoch():
    order = make_order(shard_sizes=(15,), batch_size=8)
    everything = {(0, row) for row in range(15)}
    left_out = set()
    for epoch in range(60):
        left_out |= everything - {sample for batch in epoch_batches(order, epoch) for sample in batch}
    assert left_out == everything


def test_steps_run_on_over_epochs():
    order = make_order()  # 73 samples, 9 batches
    assert [order.locate(step) for step in (0, 8, 9, 20)] == [(0, 0), (0, 8), (1, 0), (2, 2)]


def test_order_is_the_same_in_every_numpy_release():
    """A resumed run may meet another numpy: the draws use only what numpy promises to keep."""
    order = make_order(
        shard_sizes=(5, 5), batch_size=2, num_groups=1, streams_per_group=1, window=4, seed=(0,)
    )
    assert epoch_batches(order, 0)[:3] == [[(0, 3), (0, 2)], [(1, 0), (0, 4)], [(1, 4), (1, 2)]]


@pytest.mark.parametrize("seed", [(0,), (2**70, 5)])
def test_any_non_negative_seed_works(seed):
    permutation = make_order(seed=seed).window_permutation(epoch=0, group=0, stream=0, position=0)
    assert np.sort(permutation).tolist() == [0, 1, 2, 3, 4]
