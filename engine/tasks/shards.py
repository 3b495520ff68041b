"""Training from shards: its settings, and what is done about samples that cannot be read.

`dataloaders.shard_pairs` reads the samples, and `dataloaders.shard_order` gives their order.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from dataloaders.sampler import EpochSampler
from dataloaders.samples import Sample
from dataloaders.shard_order import ShardSampler
from dataloaders.shard_pairs import ShardPairs, Store
from dataloaders.shard_store import LocalShards
from engine.config import DataConfig, TaskSettings
from engine.distributed import Process
from engine.identity import digest
from engine.logger import log
from engine.writing import writing
from modules.options import Range

NAMED = 5  # broken samples that the log names in an epoch
NOTE = "broken_samples"  # in the run's notes: the epoch, and how many samples of it were broken so far


@dataclass(frozen=True)
class ShardSettings(TaskSettings):
    """Where the training samples come from if they are in shards, and in which order they are read."""

    train_shards: Annotated[
        str,
        "folder of WebDataset shards with their index shards.json (preprocess/make_shards.py), to train on instead of "
        "the training split of --datatype, whose test split is evaluated as usual; a clip is one pair an epoch, and "
        "--frame_cache does not keep it",
    ] = ""
    shard_streams: Annotated[
        int,
        "shards that are read side by side, so that a batch mixes their clips; this decides the order, whatever the "
        "number of processes; must divide --batch_size and be a multiple of the processes",
        Range(1),
    ] = 8

    def needs_training_split(self, do_train: bool) -> bool:
        return do_train and not self.train_shards

    def list_split(self, data: DataConfig, split: str) -> list[Sample]:
        """Return the samples that a split's files list; for the training split none if it comes from shards."""
        return [] if split == "train" and self.train_shards else super().list_split(data, split)


def open_store(settings: ShardSettings, process: Process) -> Store:
    """Return the shards that --train_shards names; raises ValueError or OSError on all processes."""
    folder = Path(settings.train_shards)
    checked = process.on_main(lambda: LocalShards.of(folder, "--train_shards"))
    index = process.share(checked and checked.index)[0]
    log.info(
        "training on %s: %s clips in %d shards, %.3g GB; whether test videos are among them is not checked",
        folder, f"{index.samples:,}", len(index.shards), index.bytes / 1e9,
    )  # fmt: skip
    return LocalShards(folder, index)


def shard_sampler(items: ShardPairs, streams: int, plain: EpochSampler) -> ShardSampler:
    """Return the sampler of shards with the batches, processes and seed of `plain`."""
    share = plain.global_batch_size // plain.world_size
    return ShardSampler(items.counts, share, plain.rank, plain.world_size, plain.seed, streams, items.store.announce)


def identity_of(items: ShardPairs, settings: ShardSettings) -> dict[str, Any]:
    """Return what a run on shards and its resume points must have in common: the shards' content, and their order."""
    shards = items.store.index.shards
    content = digest([shard.samples, shard.bytes, shard.sha256] for shard in shards)
    return {"training shards": content, "training pairs": len(items), "shard streams": settings.shard_streams}


class BrokenSamples:
    """Counts the samples of an epoch that cannot be read, over all processes, and names them in a file.

    Args:
        folder: that of the run. A file in it gets a line for each of them; a resumed run adds none a second time.
        allowed: --allow_missing.
    """

    def __init__(self, folder: Path, allowed: int) -> None:
        self.file, self.allowed = folder / "broken_samples.jsonl", allowed

    def rows_to_keep(self, batch: dict[str, Any], process: Process, notes: dict[str, Any]) -> np.ndarray | None:
        """Return which rows of the global batch could be read, int64, or None for all; all processes call it together.

        Raises ValueError if there were more than `allowed` in this epoch, or if nothing is left of the batch.
        """
        if not process.any(any(batch["problem"])):
            return None
        epoch, shares = int(batch["epoch"][0]), process.share((batch["index"].tolist(), batch["problem"]))
        found = [pair for indices, problems in shares for pair in zip(indices, problems, strict=True)]
        broken = {index: problem for index, problem in found if problem}
        before = notes[NOTE][1] if notes.get(NOTE, [None])[0] == epoch else 0
        notes[NOTE] = [epoch, before + len(broken)]
        process.on_main(lambda: self._name(epoch, before, broken))
        if before + len(broken) > self.allowed or len(broken) == len(found):
            first = next(iter(broken.values())).rstrip(".")
            raise ValueError(
                f"{first}; {before + len(broken)} samples of epoch {epoch + 1} could not be read so far, "
                f"--allow_missing is {self.allowed}"
                + (", and no other sample is in this batch" if len(broken) == len(found) else "")
            )
        return np.array([row for row, (_, problem) in enumerate(found) if not problem])

    def _name(self, epoch: int, before: int, broken: dict[int, str]) -> None:
        for problem in list(broken.values())[: max(NAMED - before, 0)]:
            log.warning("left out of epoch %d: %s (%s names all)", epoch + 1, problem.rstrip("."), self.file.name)
        with writing(self.file):
            text = self.file.read_text() if self.file.is_file() else ""
            there = {(line["epoch"], line["index"]) for line in map(json.loads, text.splitlines())}
            with open(self.file, "a") as file:
                for index, problem in broken.items():
                    if (epoch + 1, index) not in there:
                        line = {"epoch": epoch + 1, "index": index, "problem": problem}
                        file.write(json.dumps(line) + "\n")
