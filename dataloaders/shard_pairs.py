"""Clips with captions to train on, read from shards: as many as there are, without a list of them.

Shapes: T = `max_frames`, S image side, L words, N samples.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dataloaders.annotations import parse_json
from dataloaders.datasets import Item, Tokenize, TrainingPairs
from dataloaders.file_part import FilePart
from dataloaders.frame_parts import FrameParts
from dataloaders.frames import FrameReader
from dataloaders.quoting import quoted
from dataloaders.samples import PackedSample
from dataloaders.shard_index import Member, ShardIndex, ShardSample, member_table
from dataloaders.video_file import VideoError

TABLES = 64  # member tables that a process keeps: a megabyte each for 5,000 clips


class BrokenSampleError(ValueError):
    """A sample of a shard whose captions cannot be read; the message is one sentence."""


class Store(Protocol):
    """Where the shards of an index lie; see `shard_store`."""

    @property
    def index(self) -> ShardIndex: ...

    def opened(self, shard: int) -> AbstractContextManager[Path]: ...

    def read_ahead(self) -> Callable[[Sequence[int]], None]: ...

    def fetched(self) -> tuple[int, int]: ...


class Table:
    """The samples of one shard, packed: as objects, those of all shards that are read at once would fill the memory of
    a worker process."""

    def __init__(self, samples: Sequence[ShardSample]) -> None:
        rows = [pickle.dumps(tuple(vars(sample).values())) for sample in samples]
        self._ends = np.cumsum([0, *map(len, rows)])
        self._packed = b"".join(rows)

    def __getitem__(self, row: int) -> ShardSample:
        return ShardSample(*pickle.loads(self._packed[self._ends[row] : self._ends[row + 1]]))


class ShardPairs(TrainingPairs):
    """The samples of shards to train on, indexed by (epoch, index): one item for each, with a caption drawn in each
    epoch if it has several. An item is that of `TrainingPairs`, with `epoch` int and `problem` str besides.

    A sample that cannot be read is an item too: `problem` then says what is wrong with it, the video is black, and the
    caption is empty. The training step leaves it out of the loss. Anything else that is wrong, such as a shard that is
    missing or no tar, raises OSError or ValueError.

    `samples` is empty, because nothing may go through a list of them.
    """

    def __init__(self, store: Store, tokenize: Tokenize, frames: FrameReader, seed: int, **settings: Any) -> None:
        super().__init__((), tokenize, frames, False, seed, **settings)
        self.store = store
        self.counts = np.array([shard.samples for shard in store.index.shards], dtype=np.int64)
        self._ends = np.cumsum(self.counts)
        self._tables: OrderedDict[int, Table] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        with self.store.opened(self.place(index)[0]):
            try:
                return super().__getitem__(key) | {"epoch": epoch, "problem": ""}
            except (VideoError, BrokenSampleError) as error:
                return self._blank(index) | {"epoch": epoch, "problem": str(error)}

    def place(self, index: int) -> tuple[int, int]:
        """Return the shard of a sample, and its row in the shard."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - int(self._ends[shard] - self.counts[shard])

    def video_id(self, index: int) -> str:
        with self._found(index) as (_, sample):
            return sample.key

    def _pair(self, index: int) -> tuple[int, int]:
        return index, -1

    def _sample(self, row: int) -> PackedSample:
        with self._found(row) as (path, sample):
            return packed_sample(path, sample)

    @contextmanager
    def _found(self, index: int) -> Iterator[tuple[Path, ShardSample]]:
        """Return the path of a sample's shard, which stays there within the context, and the sample's members."""
        shard, row = self.place(index)
        with self.store.opened(shard) as path:
            if shard not in self._tables:
                self._tables[shard] = Table(member_table(path, self.store.index.shards[shard]))
                if len(self._tables) > TABLES:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(shard)
            yield path, self._tables[shard][row]

    def _blank(self, index: int) -> Item:
        n, side = self.frames.max_frames, self.frames.image_size
        return {
            "video": torch.zeros(n, 3, side, side, dtype=torch.uint8),
            "frame_mask": torch.ones(n, dtype=torch.bool),  # without any frame, a mean over the frames would be NaN
            "token_ids": self.tokenize("")[0],
            "index": index,
            "video_index": index,
        }


def packed_sample(path: Path, sample: ShardSample) -> PackedSample:
    """Return a sample of the tar `path`; raises BrokenSampleError if its captions cannot be read."""

    def part(member: Member) -> FilePart:
        return FilePart(path, *member)

    facts: Any = {}
    if sample.json is not None:
        try:
            facts = parse_json(part(sample.json).read().decode("utf-8-sig"))
        except ValueError as error:
            raise BrokenSampleError(f"{path}/{sample.json.name} is not JSON: make the shard again.") from error
    if not isinstance(facts, dict):
        raise BrokenSampleError(f"{path}/{sample.key}.json is {quoted(facts)}, not an object: make the shard again.")
    captions = facts.get("captions", facts.get("caption"))
    if captions is None and sample.txt is not None:
        captions = part(sample.txt).read().decode("utf-8-sig", errors="replace").strip()
    captions = [captions] if isinstance(captions, str) else captions
    is_text = isinstance(captions, list) and all(isinstance(text, str) and text.strip() for text in captions)
    if not captions or not is_text:
        raise BrokenSampleError(
            f"{path}/{sample.key} has the captions {quoted(captions)}, not texts: make the shard again."
        )
    video_id, rate = str(facts.get("video_id", sample.key)), facts.get("fps", 0.0)
    if sample.video is not None:
        return PackedSample(video_id, part(sample.video), tuple(captions))
    if type(rate) not in (int, float) or not 0 <= rate < float("inf"):
        raise BrokenSampleError(f"{path}/{sample.key}.json has fps {quoted(rate)}, not a number: make the shard again.")
    frames = FrameParts(path, sample.key, [part(frame) for frame in sample.frames], float(rate))
    return PackedSample(video_id, frames, tuple(captions))
