"""Times the database of an index: writing files one by one, and reading all their vectors.

    python -m benchmarks.search_store
    python -m benchmarks.search_store --windows 100000 --folder /fast/disk

Needs neither data nor weights. Each file has 20 windows of made vectors. Reading goes through a new connection; the
system may still have the file in its memory. `plain` reads the same vectors from one file of their bytes, which is the
least that reading them can take.

Shapes: N windows, E numbers of each.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch

from benchmarks.common import check_outputs, origin_of, parse_settings, write_json
from engine.errors import print_report
from engine.flags import check_folder
from modules.options import Checked, Range
from search.store import Content, Store

FACTS: dict[str, Any] = {"content": {}, "source": {}, "noted": {}}


@dataclass(frozen=True)
class Settings(Checked):
    """The flags."""

    windows: Annotated[int, "N", Range(20)] = 1_000_000
    size: Annotated[int, "E", Range(1)] = 512
    per_file: Annotated[int, "windows of a file", Range(1)] = 20
    repeats: Annotated[int, "readings to take the median of", Range(1)] = 3
    folder: Annotated[str, "folder for the files, which are deleted at the end; empty: the system's"] = ""
    output: Annotated[str, "json file for the numbers; empty: none"] = "results/search_store.json"


@dataclass(frozen=True)
class Measured:
    """Seconds of wall clock and of this process's computing, and the megabytes of the database."""

    files: int
    windows: int
    megabytes: float
    write_ms_per_file: float
    read_s: float
    read_computing_s: float
    ids_s: float
    plain_s: float


def measure(settings: Settings, folder: Path) -> Measured:
    """Write and read an index of made vectors in an empty folder."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((1000 + settings.per_file, settings.size)).astype(np.float32)
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    starts = [5.0 * number for number in range(settings.per_file)]
    ends = [start + 10 for start in starts]
    files = settings.windows // settings.per_file
    with Store(folder, write=True) as store:
        model = store.add_model("made", "made", {"dimension": settings.size, **FACTS})
        begun = time.perf_counter()
        for number in range(files):
            own = vectors[number % 1000 :][: settings.per_file]
            store.put(Content(f"/made/{number}.mp4", number, number, f"{number:064x}", 105.0), model, starts, ends, own)
        written = time.perf_counter() - begun
    reading, computing, listing, plain = [], [], [], []
    for _ in range(settings.repeats):
        with Store(folder) as store:
            begun, used = time.perf_counter(), time.process_time()
            ids, matrix = store.matrix(model)
            reading.append(time.perf_counter() - begun)
            computing.append(time.process_time() - used)
            begun = time.perf_counter()
            listed = store.ids(model)
            listing.append(time.perf_counter() - begun)
        assert (listed == ids).all()
        assert (matrix[-1] == own[-1]).all()
        path = folder / "plain"
        matrix.tofile(path)
        begun = time.perf_counter()
        np.fromfile(path, dtype=np.float16)
        plain.append(time.perf_counter() - begun)
        path.unlink()
    return Measured(
        files, len(ids), store.path.stat().st_size / 1e6, 1e3 * written / files, median(reading), median(computing),
        median(listing), median(plain),
    )  # fmt: skip


def report(argv: Sequence[str] | None) -> str:
    """Measure as the flags say; return the text to print."""
    settings = parse_settings(Settings, argv)
    check_outputs(settings.output)
    if settings.folder:
        check_folder("--folder", Path(settings.folder))
        Path(settings.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.folder or None) as folder:
        found = measure(settings, Path(folder))
    origin, line = origin_of(torch.device("cpu"))
    if settings.output:
        write_json(Path(settings.output), {**origin, "settings": asdict(settings), "measured": asdict(found)})
    return (
        f"{found.windows:,} windows of {settings.size} numbers in {found.files:,} files, {found.megabytes:,.0f} MB\n"
        f"write {found.write_ms_per_file:.2f} ms a file; read {found.read_s:.2f} s ({found.read_computing_s:.2f} s of "
        f"computing), ids alone {found.ids_s:.2f} s; plain file {found.plain_s:.2f} s\n{line}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(argv))


if __name__ == "__main__":
    sys.exit(main())
