"""The order of training items: the same global batches on any number of processes."""

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dataloaders.sampler import EpochSampler


def global_batches(n, global_batch_size, world_size, *, epoch=0, seed=0, start_batch=0, **settings):
    """Return the batches of all ranks joined, and each rank's own."""
    per_rank = []
    for rank in range(world_size):
        sampler = EpochSampler(n, global_batch_size // world_size, rank, world_size, seed, **settings)
        sampler.set_epoch(epoch, start_batch)
        per_rank.append(list(sampler))
    return [list(chain(*shares)) for shares in zip(*per_rank, strict=True)], per_rank


@given(st.integers(12, 200), st.sampled_from([2, 3, 4, 6]), st.integers(0, 5), st.integers(0, 2**32), st.booleans())
def test_global_batches_are_the_same_on_any_number_of_ranks(n, world_size, epoch, seed, drop_last):
    alone, _ = global_batches(n, 12, 1, epoch=epoch, seed=seed)
    together, per_rank = global_batches(n, 12, world_size, epoch=epoch, seed=seed, drop_last=drop_last)
    assert together[: len(alone)] == alone
    assert len(together) == n // 12 + (not drop_last and n % 12 >= world_size)
    seen = [index for batch in together for _, index in batch]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(n))
    assert {key[0] for batch in together for key in batch} == {epoch}
    for batches in per_rank:
        assert all(len(share) == 12 // world_size for share in batches[: len(alone)])
        assert all(share for share in batches)


@given(st.integers(6, 60), st.integers(0, 30), st.sampled_from([1, 2, 3]), st.integers(0, 2**32))
def test_partners_meet_in_a_batch(n_twins, n_alone, world_size, seed):
    n = 2 * n_twins + n_alone
    shuffled = np.random.default_rng(seed).permutation(n)
    partner = np.arange(n)
    one, other = shuffled[:n_twins], shuffled[n_twins : 2 * n_twins]
    partner[one], partner[other] = other, one
    batches, _ = global_batches(n, 12, world_size, seed=seed, partner=partner)
    indices = [[index for _, index in batch] for batch in batches]
    flat = list(chain(*indices))
    assert len(flat) == len(set(flat)) == n // 12 * 12
    dropped = set(range(n)) - set(flat)
    for batch in indices:
        apart = [index for index in batch if partner[index] not in batch]
        assert set(apart) <= {batch[0], batch[-1]}
        if not n_alone:
            assert not apart
    assert len([index for index in dropped if partner[index] not in dropped]) <= 1
    plain, _ = global_batches(n, 12, world_size, seed=seed)
    assert global_batches(n, 12, world_size, seed=seed, partner=np.arange(n))[0] == plain


@given(
    st.lists(st.integers(1, 6), min_size=4, max_size=40),
    st.integers(0, 3),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 5),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_no_batch_has_a_video_twice(captions, spare, world_size, epoch, seed, drop_last):
    """For any numbers of captions, even if a video must be in every batch (`spare` is 0)."""
    n, most = sum(captions), max(captions)
    batch_size = n // (most + spare) // world_size * world_size
    assume(batch_size > 0)
    videos = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(captions)), captions))
    settings = {"epoch": epoch, "seed": seed, "drop_last": drop_last, "video_index": videos}
    batches, per_rank = global_batches(n, batch_size, world_size, **settings)
    left_over = n % batch_size
    kept = not drop_last and left_over >= world_size
    assert [len(batch) for batch in batches] == [batch_size] * (n // batch_size) + [left_over] * kept
    for batch in batches:
        assert len({videos[index] for _, index in batch}) == len(batch)
    indices = [index for batch in batches for _, index in batch]
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(n))
    assert {key[0] for batch in batches for key in batch} == {epoch}
    for shares in per_rank:
        assert all(len(share) == batch_size // world_size for share in shares[: n // batch_size])
    alone, _ = global_batches(n, batch_size, 1, **settings)
    assert batches == alone[: len(batches)]
    start = (seed + epoch) % (len(batches) + 1)
    assert global_batches(n, batch_size, world_size, start_batch=start, **settings)[0] == batches[start:]
    if most == 1:
        assert batches == global_batches(n, batch_size, world_size, **settings | {"video_index": None})[0]


def test_epochs_of_videos_kept_apart_differ_in_every_way():
    """Order, leftovers and the items of a batch all vary, and none depends on the place in the list."""
    videos = np.repeat(np.arange(6), 4)
    videos = np.append(videos, [6, 7, 8])
    orders, missing, positions, met = set(), set(), set(), set()
    for epoch in range(200):
        batches, _ = global_batches(27, 4, 1, epoch=epoch, video_index=videos)
        assert len(batches) == 6
        indices = [[index for _, index in batch] for batch in batches]
        orders.add(tuple(chain(*indices)))
        missing |= set(range(27)) - set(chain(*indices))
        positions |= {(index, number) for number, batch in enumerate(indices) for index in batch}
        met |= {(one, other) for batch in indices for one in batch for other in batch}
    assert len(orders) == 200
    assert missing == set(range(27))
    assert positions == {(index, number) for index in range(27) for number in range(6)}
    assert met == {(i, j) for i in range(27) for j in range(27) if i == j or videos[i] != videos[j]}
    again, _ = global_batches(27, 4, 1, epoch=199, video_index=videos)
    assert [[index for _, index in batch] for batch in again] == indices
    plain, _ = global_batches(27, 4, 1, epoch=199)
    assert any(len({videos[index] for _, index in batch}) < 4 for batch in plain)


def test_as_many_items_as_msr_vtt():
    """Two batches, even neighbours, share as few videos as by chance: each video has 19 other items, anywhere."""
    videos = np.repeat(np.arange(9000), 20)
    sampler = EpochSampler(len(videos), 128, 0, 1, seed=0, video_index=videos)
    indices = np.array([[index for _, index in batch] for batch in sampler])
    assert indices.shape == (1406, 128)
    assert len(np.unique(indices)) == indices.size
    batches = np.sort(videos[indices], axis=1)
    assert (np.diff(batches, axis=1) > 0).all()
    shared = [len(np.intersect1d(one, other)) for one, other in pairwise(batches)]
    assert np.mean(shared) == pytest.approx(128 * 19 / 1405, rel=0.1)


@pytest.mark.parametrize(
    ("captions", "per_rank", "counts_and_fix"),
    [
        ((3, 5, 4), 2, "5 and an epoch 3: pass --batch_size 2 or less, or --same_video negatives or positives"),
        ((9, 9, 3, 3), 3, "9 and an epoch 4: pass --batch_size 2 or less, or --same_video"),
        ((9, 1, 1, 1), 2, "9 and an epoch 3: pass --same_video negatives or positives"),
        ((2,), 1, "2 and an epoch 1: pass --same_video negatives or positives"),
    ],
)
def test_a_video_with_more_captions_than_batches_is_refused(captions, per_rank, counts_and_fix):
    videos = np.repeat(np.arange(len(captions)), captions)
    with pytest.raises(ValueError, match=f"--same_video apart needs as many full batches .* has {counts_and_fix}"):
        EpochSampler(len(videos), per_rank, rank=0, world_size=2, seed=0, video_index=videos)


def test_partners_and_videos_kept_apart_exclude_each_other():
    videos = np.array([0, 0, 1, 1])
    EpochSampler(4, 2, 0, 1, seed=0, partner=np.arange(4), video_index=videos)
    with pytest.raises(ValueError, match="--same_video apart does not work with --train_twins_csv"):
        EpochSampler(4, 2, 0, 1, seed=0, partner=np.array([2, 3, 0, 1]), video_index=videos)


def test_orders_differ_between_epochs_and_seeds():
    drawn = [global_batches(40, 4, 1, epoch=e, seed=s)[0] for e, s in [(0, 0), (1, 0), (0, 1), (0, 0)]]
    indices = [tuple(index for batch in batches for _, index in batch) for batches in drawn]
    assert indices[0] == indices[3]
    assert len(set(indices)) == 3
    assert all(sorted(order) == list(range(40)) for order in indices)


@given(st.integers(0, 5))
def test_resuming_within_an_epoch_skips_what_was_seen(start_batch):
    whole, _ = global_batches(23, 4, 2, epoch=3)
    rest, _ = global_batches(23, 4, 2, epoch=3, start_batch=start_batch)
    assert rest == whole[start_batch:]
    sampler = EpochSampler(23, 2, rank=0, world_size=2, seed=0)
    sampler.set_epoch(3, start_batch)
    assert len(sampler) == 5


def test_the_last_smaller_batch_is_kept_if_every_rank_gets_some():
    batches, per_rank = global_batches(15, 8, 4, drop_last=False)
    assert [len(batch) for batch in batches] == [8, 7]
    assert [len(shares[-1]) for shares in per_rank] == [2, 2, 2, 1]
    assert [len(batch) for batch in global_batches(11, 8, 4, drop_last=False)[0]] == [8]


@pytest.mark.parametrize(
    ("n", "batch_size", "drop_last", "message"),
    [
        (7, 4, True, "There are 7 training items, a batch needs at least 8: pass --batch_size 6 or less"),
        (1, 4, True, "There are 1 training items, a batch needs at least 8: use fewer processes or more data"),
        (1, 4, False, "There are 1 training items, a batch needs at least 2: use fewer processes or more data"),
        (7, 0, True, "--batch_size gives 0 items a process: pass at least 2"),
    ],
)
def test_too_few_items_for_a_batch(n, batch_size, drop_last, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(n, batch_size, rank=0, world_size=2, seed=0, drop_last=drop_last)


def test_the_order_shares_no_random_stream_with_the_items():
    """NumPy pads seeds with zeros: with the seed [seed, epoch], the order would share its stream with item 0."""
    assert np.random.default_rng([3, 1]).random() == np.random.default_rng([3, 1, 0]).random()
    order = [index for batch in global_batches(50, 1, 1, epoch=1, seed=3)[0] for _, index in batch]
    assert order != np.random.default_rng([3, 1, 0]).permutation(50).tolist()
