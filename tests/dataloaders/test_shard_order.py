"""The order of samples in shards: the same global batches on any number of processes, each of which reads its own."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloaders.shard_order import ShardSampler
from tests.dataloaders.folders import assert_one_sentence

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) >= 16)


def batches_of(sizes, world_size=1, *, streams=4, epoch=0, seed=0, start=0, **settings):
    """Return each rank's batches of indices, for a global batch of 16."""
    per_rank = []
    for rank in range(world_size):
        sampler = ShardSampler(sizes, 16 // world_size, rank, world_size, seed, streams, **settings)
        sampler.set_epoch(epoch, start)
        batches = list(sampler)
        assert all(key[0] == epoch for batch in batches for key in batch)
        per_rank.append([[index for _, index in batch] for batch in batches])
    return per_rank


def naive(sizes, streams, epoch, seed):
    """Return the global batches straight from the definition in the module's head."""

    def shuffled(n, *key):
        return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch, *key))).permutation(n).tolist()

    sequence = [
        sum(sizes[:shard]) + row for shard in shuffled(len(sizes), 0) for row in shuffled(sizes[shard], 1, shard)
    ]
    n = len(sequence) // 16
    each = n * 16 // streams
    parts = [sequence[stream * each : (stream + 1) * each] for stream in range(streams)]
    share = 16 // streams
    return [[index for part in parts for index in part[batch * share : (batch + 1) * share]] for batch in range(n)]


@settings(max_examples=30)
@given(SIZES, st.sampled_from([1, 2, 4, 8]), st.integers(0, 5), st.integers(0, 2**32))
def test_the_order_is_that_of_the_definition(sizes, streams, epoch, seed):
    assert batches_of(sizes, streams=streams, epoch=epoch, seed=seed)[0] == naive(sizes, streams, epoch, seed)


@settings(max_examples=30)
@given(SIZES, st.sampled_from([4, 8, 16]), st.sampled_from([2, 4]), st.integers(0, 5), st.integers(0, 2**32))
def test_every_number_of_ranks_has_the_same_global_batches(sizes, streams, world_size, epoch, seed):
    (alone,) = batches_of(sizes, streams=streams, epoch=epoch, seed=seed)
    per_rank = batches_of(sizes, world_size, streams=streams, epoch=epoch, seed=seed)
    assert [list(chain(*shares)) for shares in zip(*per_rank, strict=True)] == alone
    assert all(len(share) == 16 // world_size for batches in per_rank for share in batches)
    seen = list(chain(*alone))
    assert len(seen) == len(set(seen)) == sum(sizes) // 16 * 16  # none twice, none missing but those that are dropped
    assert set(seen) <= set(range(sum(sizes)))


@settings(max_examples=30)
@given(SIZES, st.sampled_from([1, 2, 4]), st.integers(0, 2**32), st.data())
def test_a_resumed_epoch_goes_on_where_it_was(sizes, world_size, seed, data):
    start = data.draw(st.integers(0, sum(sizes) // 16))
    whole = batches_of(sizes, world_size, seed=seed)
    assert batches_of(sizes, world_size, seed=seed, start=start) == [batches[start:] for batches in whole]


@settings(max_examples=30)
@given(SIZES, st.sampled_from([1, 2, 4]), st.integers(0, 3), st.integers(0, 2**32))
def test_what_is_read_was_announced(sizes, world_size, behind, seed):
    """Check that a rank reads only shards that it announced before, those of the batches behind it among them."""
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    announced: list[list[int]] = []
    for rank in range(world_size):
        sampler = ShardSampler(sizes, 16 // world_size, rank, world_size, seed, 4, announced.append, behind)
        read: list[set[int]] = []
        for batch in sampler:
            read.append({int(shard_of[index]) for _, index in batch})
            assert set().union(*read[-1 - behind :]) <= set(announced[-1])
            assert len(announced[-1]) == len(set(announced[-1]))


def test_a_rank_reads_only_its_shards():
    """With equal shards as long as a stream, no shard is read by two ranks."""
    sizes = [8] * 8  # 64 samples, 4 batches, 8 streams of 8
    shard_of = np.repeat(np.arange(8), sizes)
    per_rank = batches_of(sizes, 4, streams=8)
    read = [{int(shard_of[index]) for batch in batches for index in batch} for batches in per_rank]
    assert [len(shards) for shards in read] == [2, 2, 2, 2]
    assert set.union(*read) == set(range(8))


def test_epochs_and_seeds_differ():
    orders = [batches_of([20, 30, 14], epoch=epoch, seed=seed)[0] for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert len({str(order) for order in orders}) == 3
    assert [sorted(chain(*order)) for order in orders] == [list(range(64))] * 3


def test_a_batch_mixes_shards():
    """Check that the first batch of 8 streams over 8 equal shards has two samples of each."""
    shard_of = np.repeat(np.arange(8), 20)
    first = batches_of([20] * 8, streams=8)[0][0]
    assert sorted(int(shard_of[index]) for index in first) == sorted([*range(8)] * 2)


@pytest.mark.parametrize(
    ("streams", "world_size", "fix"), [(3, 1, "2"), (2, 4, "4"), (8, 3, "3"), (6, 4, "4"), (100, 2, "16")]
)
def test_streams_that_cannot_be_shared(streams, world_size, fix):
    def sampler():
        return ShardSampler([100], 16 // world_size, 0, world_size, 0, streams)

    assert_one_sentence(sampler, ValueError, f"--shard_streams {streams}", f"pass --shard_streams {fix}.")


def test_too_few_samples():
    assert_one_sentence(lambda: ShardSampler([3, 4], 16, 0, 1, 0, 4), ValueError, "7 training items")
