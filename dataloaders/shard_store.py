"""Where the shards of an index lie: in a local folder."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dataloaders.shard_index import INDEX, ShardIndex, read_index


@dataclass(frozen=True)
class LocalShards:
    """The shards of a local folder. Raises FileNotFoundError or ValueError, which name a shard that is missing or has
    another size than the index says; what the shards hold is not read."""

    folder: Path
    index: ShardIndex

    @classmethod
    def of(cls, folder: Path, flag: str) -> "LocalShards":
        """Read the index of a folder that `flag` named, and look at every shard."""
        store = cls(folder, read_index(folder, flag))
        for shard in range(len(store.index.shards)):
            with store.opened(shard):
                pass
        return store

    @contextmanager
    def opened(self, shard: int) -> Iterator[Path]:
        """Return the path of a shard, which stays there within the context."""
        entry = self.index.shards[shard]
        path = self.folder / entry.file
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, and {INDEX} lists it: copy or make the shard again.")
        if (size := os.stat(path).st_size) != entry.bytes:
            raise ValueError(
                f"{path} has {size:,} bytes, but {INDEX} says {entry.bytes:,}: copy or make the shard again."
            )
        yield path

    def read_ahead(self) -> Callable[[Sequence[int]], None]:
        """Return what does nothing: every shard is here."""
        return lambda shards: None

    def fetched(self) -> tuple[int, int]:
        """Return the number of shards that were downloaded, and their bytes."""
        return 0, 0
