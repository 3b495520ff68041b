"""Training from shards: its settings, and what is done about samples that cannot be read.

`dataloaders.shard_pairs` reads the samples, and `dataloaders.shard_order` gives their order.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from dataloaders.quoting import counted
from dataloaders.sampler import EpochSampler
from dataloaders.samples import Sample
from dataloaders.shard_cache import CachedShards
from dataloaders.shard_download import Source, fetch_index, is_remote
from dataloaders.shard_index import ShardIndex
from dataloaders.shard_order import ShardSampler
from dataloaders.shard_pairs import ShardPairs, Store
from dataloaders.shard_store import LocalShards
from engine.config import Config, DataConfig, TaskSettings
from engine.distributed import Process
from engine.identity import digest
from engine.logger import log
from engine.writing import writing
from modules.methods import Method
from modules.options import OnlyWith, Range

DOWNLOADED = OnlyWith("train_shards", ("an http(s) address",), is_remote)
# Settings of one training: `identity_of` covers the content of the shards, and the others change no result.
SHARDS_OF_THE_RUN = ("train_shards", "shard_cache", "shard_cache_gb", "shard_patience", "allow_pipe")
NAMED = 5  # broken samples that the log names in an epoch
NOTE = "broken_samples"  # in the run's notes: the epoch, and how many samples of it were broken so far


@dataclass(frozen=True)
class ShardSettings(TaskSettings):
    """Where the training samples come from if they are in shards, and in which order they are read."""

    train_shards: Annotated[
        str,
        "folder or http(s) address of WebDataset shards with their index shards.json (preprocess/make_shards.py), to "
        "train on instead of the training split of --datatype, whose test split is evaluated as usual; a clip is one "
        "pair an epoch, and --frame_cache does not keep it",
    ] = ""
    shard_streams: Annotated[
        int,
        "shards that are read side by side, so that a batch mixes their clips; this decides the order, whatever the "
        "number of processes; must divide --batch_size and be a multiple of the processes",
        Range(1),
        OnlyWith("train_shards"),
    ] = 8
    shard_cache: Annotated[str, "folder on this machine for shards that are downloaded", DOWNLOADED] = ""
    shard_cache_gb: Annotated[
        float,
        "size of --shard_cache in GB (10^9 bytes); shards that were used least recently make room",
        Range(0),
        DOWNLOADED,
    ] = 100.0
    shard_patience: Annotated[
        float,
        "seconds for which a download is tried again after it last got on; below the 15 minutes that other processes "
        "wait",
        Range(0, 840),
        DOWNLOADED,
    ] = 600.0
    allow_pipe: Annotated[
        bool,
        "accept --train_shards 'pipe:COMMAND', a shell command that prints the file whose name replaces {}; it is "
        "written into logs and checkpoints, so it must hold no password",
        OnlyWith("train_shards", ("'pipe:COMMAND'",), lambda address: address.startswith("pipe:")),
    ] = False

    def needs_training_split(self, do_train: bool) -> bool:
        return do_train and not self.train_shards

    def list_split(self, data: DataConfig, split: str) -> list[Sample]:
        """Return the samples that a split's files list; for the training split none if it comes from shards."""
        return [] if split == "train" and self.train_shards else super().list_split(data, split)


def open_store(config: Config, process: Process, workers: int) -> Store:
    """Return the shards that --train_shards names, for `workers` reading processes each.

    All processes call this together. Raises ValueError or OSError on all of them.
    """
    settings: ShardSettings = config.task
    address, flag = settings.train_shards, "--train_shards"

    def find() -> tuple[ShardIndex, Source | None]:
        if not is_remote(address):
            return LocalShards.of(Path(address), flag).index, None
        source = Source(address, flag, settings.allow_pipe)
        if not settings.shard_cache:
            raise ValueError(f"{flag} {source} is downloaded: name a folder for it with --shard_cache")
        return fetch_index(source, settings.shard_patience), source

    index, source = process.share(process.on_main(find))[0]
    log.info(
        "training on %s: %s in %s, %.3g GB; whether test videos are among them is not checked",
        source or address, counted(index.samples, "clip"), counted(len(index.shards), "shard"), index.bytes / 1e9,
    )  # fmt: skip
    if source is None:
        return LocalShards(Path(address), index)
    name = digest(shard.sha256 for shard in index.shards).split()[-1]
    most, folder = int(settings.shard_cache_gb * 1e9), Path(settings.shard_cache).absolute()
    store, error = CachedShards(source, index, folder, name, most, settings.shard_patience), None
    share = config.optim.batch_size // settings.shard_streams
    here = settings.shard_streams * int(os.environ.get("LOCAL_WORLD_SIZE", 1)) // process.world_size
    try:
        store.check(max(here, 1), share * (1 + batches_ahead(workers, config)))
    except (ValueError, OSError) as caught:
        error = caught
    process.fail_together(error)
    return store


def batches_ahead(workers: int, config: Config) -> int:
    """Return for how many batches reading is ahead of training: those that worker processes prepare."""
    return workers * config.data.prefetch_factor


def shard_sampler(items: ShardPairs, streams: int, plain: EpochSampler, behind: int) -> ShardSampler:
    """Return the sampler of shards with the batches, processes and seed of `plain`; `behind` is that of the sampler."""
    share = plain.global_batch_size // plain.world_size
    return ShardSampler(
        items.counts, share, plain.rank, plain.world_size, plain.seed, streams, items.store.read_ahead(), behind
    )


def identity_of(items: ShardPairs, settings: ShardSettings) -> dict[str, Any]:
    """Return what a run on shards and its resume points must have in common: the shards' content, and their order."""
    shards = items.store.index.shards
    content = digest([shard.samples, shard.bytes, shard.sha256] for shard in shards)
    return {"training shards": content, "training pairs": len(items), "shard streams": settings.shard_streams}


def refuse_regulariser(method: Method, allowed: int) -> None:
    """Refuse --allow_missing for a method with a term of its own in the loss, which would count black clips too."""
    if allowed and type(method).regulariser is not Method.regulariser:
        raise ValueError(
            f"--allow_missing {allowed} with --train_shards does not work for {type(method).__name__}, whose loss has "
            "a mean over all clips: make the shards again without the broken ones, and leave --allow_missing out"
        )


class ShardReport:
    """Counts the samples of an epoch that cannot be read, over all processes, names them, and counts the downloads.

    Args:
        folder: that of the run. A file in it gets a line for each broken sample; a resumed run adds none a second time.
        allowed: --allow_missing, broken samples in an epoch.
    """

    def __init__(self, folder: Path, allowed: int, store: Store, process: Process) -> None:
        self.file, self.allowed, self.store, self.process = folder / "broken_samples.jsonl", allowed, store, process
        self.epoch = 0

    def rows_to_keep(self, batch: dict[str, Any], notes: dict[str, Any]) -> np.ndarray | None:
        """Return which rows of the global batch could be read, int64, or None for all; all processes call it together.

        Raises ValueError if there were more than `allowed` in this epoch, or if nothing is left of the batch.
        """
        self.epoch = int(batch["epoch"][0]) + 1
        if not self.process.any(any(batch["problem"])):
            return None
        shares = self.process.share((batch["index"].tolist(), batch["problem"]))
        found = [pair for indices, problems in shares for pair in zip(indices, problems, strict=True)]
        broken = {index: problem for index, problem in found if problem}
        before = self.count(notes)
        notes[NOTE] = [self.epoch, before + len(broken)]
        self.process.on_main(lambda: self._name(before, broken))
        empty = len(broken) == len(found)
        if before + len(broken) > self.allowed or empty:
            first = next(iter(broken.values())).rstrip(".")
            raise ValueError(
                f"{first}; {counted(before + len(broken), 'sample')} of epoch {self.epoch} could not be read so far, "
                f"--allow_missing is {self.allowed}" + ", and a batch holds nothing else" * empty
            )
        return np.array([row for row, (_, problem) in enumerate(found) if not problem])

    def count(self, notes: dict[str, Any]) -> int:
        """Return how many samples of this epoch were broken so far."""
        epoch, count = notes.get(NOTE, (0, 0))
        return count if epoch == self.epoch else 0

    def scalars(self, notes: dict[str, Any]) -> dict[str, float]:
        """Return numbers to log; all processes call this together."""
        counts = self.process.share(self.store.fetched())
        shards, size = (sum(numbers) for numbers in zip(*counts, strict=True))
        fetched = {"shards_downloaded": shards, "gb_downloaded": round(size / 1e9, 3)} if shards else {}
        return {"broken_samples": self.count(notes), **fetched}

    def _name(self, before: int, broken: dict[int, str]) -> None:
        for problem in list(broken.values())[: max(NAMED - before, 0)]:
            log.warning("left out of epoch %d: %s (%s names all)", self.epoch, problem.rstrip("."), self.file.name)
        with writing(self.file):
            text = self.file.read_text() if self.file.is_file() else ""
            there = {(line["epoch"], line["index"]) for line in map(json.loads, text.splitlines())}
            with open(self.file, "a") as file:
                for index, problem in broken.items():
                    if (self.epoch, index) not in there:
                        file.write(json.dumps({"epoch": self.epoch, "index": index, "problem": problem}) + "\n")
