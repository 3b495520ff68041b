"""The order of the samples of shards in an epoch, which needs only a few shards at a time.

Shuffling all samples would need every shard for every batch. Instead we shuffle the shards, then the samples of each
shard, and read S streams side by side:

    sequence   the samples of the first shard of the epoch, shuffled, then those of the second, ...; N in all
    streams    the first n_batches * B samples of the sequence, cut into S equal consecutive parts
    batch b    of each stream its samples b * B/S ... (b+1) * B/S - 1, one stream after the other

So a batch mixes samples of S shards or more, and S is what decides about the batches, not the number of processes: a
process takes S/W whole streams and reads no shard of the others. The order depends on seed, epoch and S alone.

Shapes: N samples, B global batch, S streams, W processes, n_batches = N // B.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dataloaders.sampler import EpochSampler

SHARDS, ROWS = 0, 1  # of the spawn keys: what is shuffled


class Run(NamedTuple):
    """Consecutive samples of the sequence that are of one shard: its number, and where they begin among its samples in
    the shuffled order."""

    shard: int
    begin: int
    end: int


class ShardSampler(EpochSampler):
    """One rank's share of the batches of an epoch, like `EpochSampler`, in the order of this module's head.

    A sample's index is its row in its shard plus the number of samples in the shards before it in the index.

    `announce` is called whenever the shards change that this rank reads: with those of the batch that is asked for next
    and of the `behind` batches before it, which worker processes may still be reading, followed by the next one of each
    stream.

    Raises ValueError if the streams cannot be shared by the ranks or the batch cannot be shared by the streams.
    """

    def __init__(
        self,
        counts: Sequence[int] | np.ndarray,
        batch_size_per_rank: int,
        rank: int,
        world_size: int,
        seed: int,
        streams: int,
        announce: Callable[[Sequence[int]], None] = lambda shards: None,
        behind: int = 0,
    ) -> None:
        self.counts = np.array(counts, dtype=np.int64)
        self.first = np.cumsum(self.counts) - self.counts  # index of each shard's first sample
        batch = batch_size_per_rank * world_size
        if streams % world_size or batch % streams:
            able = [n for n in range(world_size, batch + 1, world_size) if batch % n == 0]
            fix = max((n for n in able if n <= streams), default=min(able, default=0))
            raise ValueError(
                f"--shard_streams {streams} must divide --batch_size {batch} and be a multiple of the {world_size} "
                f"processes: pass --shard_streams {fix}."
            )
        super().__init__(int(self.counts.sum()), batch_size_per_rank, rank, world_size, seed)
        self.streams, self.announce, self.behind = streams, announce, behind
        self.share = batch // streams  # samples of a stream in a batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, ends = self._shards()
        rows: dict[int, np.ndarray] = {}  # of the shards that are read now
        announced: list[int] = []
        own = self.streams // self.world_size
        mine = range(self.rank * own, (self.rank + 1) * own)
        for batch in range(self.start_batch, self.n_batches):
            needed = self._needed(order, ends, mine, batch)
            if needed != announced:
                self.announce(needed)
                announced, rows = needed, {shard: rows[shard] for shard in needed if shard in rows}
            items: list[int] = []
            for stream in mine:
                begin = stream * self.n_batches * self.share + batch * self.share
                for shard, first, end in self._runs(order, ends, begin, begin + self.share):
                    if shard not in rows:
                        rows[shard] = self._shuffled(ROWS, int(self.counts[shard]), shard)
                    items += (self.first[shard] + rows[shard][first:end]).tolist()
            yield [(self.epoch, index) for index in items]

    def _shuffled(self, *what: int) -> np.ndarray:
        """Return the numbers 0 ... n - 1 in an order drawn by (seed, epoch) and what is shuffled: (kind, n, shard)."""
        kind, n, *which = what
        # With a spawn key the stream differs from those of the items, [seed, epoch, index].
        key = (self.epoch, kind, *which)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key)).permutation(n)

    def _shards(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards in the epoch's order, and where the samples of each end in the sequence; both int64."""
        order = self._shuffled(SHARDS, len(self.counts))
        return order, np.cumsum(self.counts[order])

    def _runs(self, order: np.ndarray, ends: np.ndarray, begin: int, end: int) -> Iterator[Run]:
        """Yield the runs that make up the samples [begin, end) of the sequence."""
        place = int(np.searchsorted(ends, begin, side="right"))
        while begin < end:
            shard, until = int(order[place]), min(end, int(ends[place]))
            start = int(ends[place]) - int(self.counts[shard])
            yield Run(shard, begin - start, until - start)
            begin, place = until, place + 1

    def _needed(self, order: np.ndarray, ends: np.ndarray, mine: range, batch: int) -> list[int]:
        """Return the shards that a batch and those just behind need, then the next ones."""
        now, later = [], []
        for stream in mine:
            start = stream * self.n_batches * self.share
            begin = start + max(batch - self.behind, 0) * self.share
            last, limit = start + (batch + 1) * self.share - 1, start + self.n_batches * self.share - 1
            low, high, most = (int(np.searchsorted(ends, place, side="right")) for place in (begin, last, limit))
            now += order[low : high + 1].tolist()
            later += order[high + 1 : min(high + 1, most) + 1].tolist()
        return list(dict.fromkeys(now + later))
