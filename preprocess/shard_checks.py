"""Check the shards of a folder against its index, or write the index of shards that another program made."""

import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from dataloaders.preparation import gigabytes, in_threads
from dataloaders.quoting import counted
from dataloaders.shard_index import INDEX, Shard, ShardIndex, member_table, read_index, sha256_of, write_index
from preprocess.shard_folder import DONE


def damage(shard: Shard, folder: Path) -> str | None:
    """Return what is wrong with a shard of an index, None for nothing."""
    path = folder / shard.file
    try:
        member_table(path, shard)
        with path.open("rb") as file:
            digest = sha256_of(file)
        if digest != shard.sha256:
            return f"{path} has another checksum than {INDEX} says: copy or make the shard again."
    except (ValueError, OSError) as error:
        return str(error)
    return None


def verify(folder: Path, jobs: int) -> int:
    """Read all shards of a folder again; returns 0, or 1 if one is not what the index says."""
    index = read_index(folder, "--verify")
    check = partial(damage, folder=folder)
    checked = tqdm(in_threads(check, index.shards, jobs), "reading", len(index.shards), unit="shard", disable=None)
    problems = [problem for problem in checked if problem]
    for problem in problems:
        print(problem, file=sys.stderr)
    intact, samples = len(index.shards) - len(problems), counted(index.samples, "sample")
    print(f"{folder}: {intact:,} of {counted(len(index.shards), 'shard')} intact; {INDEX} lists {samples}.")
    return int(bool(problems))


def add_index(folder: Path, jobs: int) -> int:
    """Write the index of tars that another program made; returns 0."""
    if not folder.is_dir():
        raise FileNotFoundError(f"--index {folder} is not a folder: pass the one with the tars.")
    if (folder / DONE).exists() or (folder / INDEX).exists():
        raise ValueError(f"--index {folder} has an index or is being filled by this command: nothing is to be done.")
    tars = sorted(path for path in folder.rglob("*.tar") if not path.name.startswith("."))
    if not tars:
        raise ValueError(f"--index {folder} holds no .tar: pass the folder with the shards.")

    def entry(path: Path) -> Shard:
        samples = len(member_table(path))
        with path.open("rb") as file:
            return Shard(path.relative_to(folder).as_posix(), samples, path.stat().st_size, sha256_of(file))

    shards = tuple(tqdm(in_threads(entry, tars, jobs), "reading", len(tars), unit="shard", disable=None))
    index = ShardIndex(shards, {"indexed": "shards of another program"})
    write_index(folder, index)
    print(f"{folder}: {counted(index.samples, 'sample')} in {counted(len(shards), 'shard')}, {gigabytes(index.bytes)}.")
    return 0
