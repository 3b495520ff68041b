"""The order of training items: which items make each global batch, and which of them a process takes."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """One rank's share of the training batches of an epoch: lists of (epoch, index) for `TrainingPairs`.

    The n items are shuffled by (seed, epoch) alone and cut into global batches of batch_size_per_rank * world_size.
    Each rank takes its contiguous slice of every global batch, so the global batches are the same on any number of
    ranks. Items left over at the end are dropped; with `drop_last=False` they make one smaller batch, if every rank
    gets some of it.

    With `partner`, int64 [n], an item is followed by its partner (see `TrainingPairs`), so that both are in one batch
    unless the end of a batch separates them. That never happens if all items have partners and the batch size is even.

    With `video_index`, int64 [n], items are dealt to the batches so that no global batch has two items of one video. If
    no video has two items, this changes nothing.

    Raises ValueError if there are too few items for a single batch; with `video_index`, if a video has more items than
    there are full batches, or if there are partners too.
    """

    def __init__(
        self,
        n: int,
        batch_size_per_rank: int,
        rank: int,
        world_size: int,
        seed: int,
        drop_last: bool = True,
        partner: np.ndarray | None = None,
        video_index: np.ndarray | None = None,
    ) -> None:
        assert 0 <= rank < world_size, (rank, world_size)
        if batch_size_per_rank < 1:
            raise ValueError(f"--batch_size gives {batch_size_per_rank} items a process: pass at least {world_size}.")
        self.n = n
        self.global_batch_size = batch_size_per_rank * world_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.partner = partner
        self.n_batches, left_over = divmod(n, self.global_batch_size)
        if not drop_last and left_over >= world_size:
            self.n_batches += 1
        if self.n_batches == 0:
            least = self.global_batch_size if drop_last else world_size
            most = n - n % world_size  # the largest batch that can be shared evenly
            fix = f"pass --batch_size {most} or less" if most else "use fewer processes or more data"
            raise ValueError(f"There are {n} training items, a batch needs at least {least}: {fix}.")
        self.video_index = None
        if video_index is not None:
            if partner is not None and (partner != np.arange(n)).any():
                raise ValueError("--same_video apart does not work with --train_twins_csv: leave one of them out.")
            items_of_a_video, n_full = int(np.bincount(video_index).max()), n // self.global_batch_size
            if items_of_a_video > max(n_full, 1):
                most = n // items_of_a_video
                most -= most % world_size
                fix = f"--batch_size {most} or less, or " if most > 1 else ""
                raise ValueError(
                    "--same_video apart needs as many full batches in an epoch as a video has captions, but a video "
                    f"has {items_of_a_video} and an epoch {n_full}: pass {fix}--same_video negatives or positives."
                )
            if items_of_a_video > 1:
                self.video_index = video_index
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Set the epoch of the next iteration, which skips the first `start_batch` batches to resume within it."""
        assert 0 <= start_batch <= self.n_batches, (start_batch, self.n_batches)
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch, whatever `start_batch` is."""
        return self.n_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # With the epoch as spawn key the stream differs from those of the items, [seed, epoch, index].
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.epoch,)))
        order = generator.permutation(self.n)
        if self.video_index is not None:
            order = _deal_apart(order, self.video_index, self.global_batch_size, generator)
        elif self.partner is not None:
            place = np.argsort(order)
            order = np.lexsort((place, np.minimum(place, place[self.partner])))
        for batch in range(self.start_batch, self.n_batches):
            first = batch * self.global_batch_size
            global_batch = order[first : first + self.global_batch_size]
            share = np.array_split(global_batch, self.world_size)[self.rank]
            yield [(self.epoch, index) for index in share.tolist()]


def _deal_apart(
    order: np.ndarray, video_index: np.ndarray, batch_size: int, generator: np.random.Generator
) -> np.ndarray:
    """Reorder shuffled items, int64 [n], into consecutive batches so that no batch has two items of one video.

    The items left over come last; they are of different videos too. The others are dealt video by video, in random
    order. Each item goes to one of the batches that have the fewest; chance decides which. No batch is ever more than
    one item ahead, so a video could reach a batch twice only if it had more items than there are batches, which the
    caller rules out.
    """
    n_batches, n_left_over = divmod(len(order), batch_size)
    _, first_of_video = np.unique(video_index[order], return_index=True)
    at_end = np.sort(first_of_video)[:n_left_over]
    left_over, order = order[at_end], np.delete(order, at_end)

    videos = generator.permutation(video_index.max() + 1)[video_index[order]]
    by_video = np.argsort(videos, kind="stable")
    rounds, videos = (array[by_video].reshape(batch_size, n_batches) for array in (order, videos))
    batches = np.empty((n_batches, batch_size), dtype=np.int64)
    takers, videos_before = np.arange(n_batches), np.full(n_batches, -1)
    for number, (items, videos_now) in enumerate(zip(rounds, videos, strict=True)):
        # Each batch takes one item a round. The first video of a round may have begun in the round before: the batches
        # that have it already do not take the rest of it.
        have_it = takers[videos_before == videos_now[0]]
        drawn = generator.permutation(n_batches)
        first = drawn[~np.isin(drawn, have_it)][: (videos_now == videos_now[0]).sum()]
        takers = np.concatenate([first, generator.permutation(np.setdiff1d(drawn, first))])
        batches[takers, number] = items
        videos_before = videos_now
    return np.concatenate([batches.reshape(-1), left_over])
