"""Times the engines of the search and measures their recall@10, on made embeddings.

    python -m benchmarks.search
    python -m benchmarks.search --windows 10000 --only exact,ivf --output=
    python -m benchmarks.search --only exact,qdrant --qdrant qdrant://localhost

Needs neither data nor weights. Texts lie outside the cloud of windows, so their recall is measured apart from that of
clips. An approximate engine gets a row for every fourth effort, and one, marked `chosen`, for the effort that `tune`
takes for the target recall on texts. Without --qdrant, the engine qdrant is the client's local mode, which is exact,
slow, and says nothing about a server's speed or recall.

Shapes: N windows, Q queries, E joint embedding.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch

from benchmarks.common import check_outputs, origin_of, parse_settings, write_json
from benchmarks.made_vectors import MadeWorld, make_world
from dataloaders.quoting import quoted
from engine.errors import print_report
from modules.options import Checked, Range
from search.engines.base import Approximate, Engine
from search.engines.exact import FaissExact, TorchExact
from search.engines.ivf import IVF
from search.engines.qdrant import Address, Qdrant, connect
from search.recall import BEST, TARGET, measure_recall, tune

ENGINES = ("exact", "torch", "ivf", "qdrant")
LOCAL_MODE = 20_000  # windows that the client's local mode is measured with: it needs a second for a query of 100,000
TUNED_ON = 0.5  # share of the texts that the effort is chosen on; recall is that of the others
FILTERED = 0.01  # share of the windows that a filter allows, and that is removed


@dataclass(frozen=True)
class Settings(Checked):
    """The flags."""

    windows: Annotated[str, "numbers N of windows"] = "100000,1000000"
    embedding: Annotated[int, "E", Range(8)] = 512
    queries: Annotated[int, "texts, and clips, each", Range(2)] = 200
    only: Annotated[str, "engines: exact (faiss), torch (exact without faiss), ivf, qdrant"] = ",".join(ENGINES)
    qdrant: Annotated[str, "qdrant://HOST[:PORT] of a server; empty: the client's local mode"] = ""
    target: Annotated[float, "recall@10 on texts that the effort is chosen for", Range(0, 1, above=True)] = TARGET
    threads: Annotated[int, "threads of an engine in this process", Range(1)] = 1
    output: Annotated[str, "json file for the numbers; empty: none"] = "results/search.json"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(word.strip().isdecimal() and int(word) >= 100 for word in self.windows.split(",")):
            raise ValueError(f"--windows {quoted(self.windows)} is not a list such as 10000,1000000 of at least 100")
        for name in self.only.split(","):
            if name not in ENGINES:
                raise ValueError(f"--only {quoted(name)} is no engine: choose from {', '.join(ENGINES)}")
        if self.qdrant and Address.parse(self.qdrant).collection:
            raise ValueError(f"--qdrant {quoted(self.qdrant)} names a collection; the benchmark makes its own")
        for package, names in (("faiss", {"exact", "ivf"}), ("qdrant_client", {"qdrant"})):
            needing = sorted(names & set(self.only.split(",")))
            if needing and find_spec(package) is None:
                raise ValueError(f"--only {needing[0]} needs {package}: install it, or leave the engine out")

    @property
    def sizes(self) -> list[int]:
        """Return the numbers N."""
        return [int(word) for word in self.windows.split(",")]


@dataclass(frozen=True)
class Row:
    """One engine at one size and effort. Times of a query alone: milliseconds of processor and of wall clock."""

    engine: str
    windows: int
    effort: int | None  # None: exact
    chosen: bool
    build_s: float
    cpu_ms: float
    wall_ms: float
    wall_p95_ms: float
    text_recall: float
    clip_recall: float
    filtered_ms: float  # wall clock, 1 % of the windows allowed
    remove_s: float | None  # wall clock, 1 % of the windows removed


def timed_queries(engine: Engine, queries: np.ndarray, allowed: np.ndarray | None = None) -> tuple[float, float, float]:
    """Return median processor time, and median and 95th percentile of wall clock, of one query, in milliseconds."""
    engine.search(queries[:1], BEST, allowed)
    cpu, wall = [], []
    for query in queries:
        starts = time.process_time(), time.perf_counter()
        engine.search(query[None], BEST, allowed)
        cpu.append(1e3 * (time.process_time() - starts[0]))
        wall.append(1e3 * (time.perf_counter() - starts[1]))
    return median(cpu), median(wall), float(np.quantile(wall, 0.95))


def seconds(run: Callable[[], object]) -> float:
    """Return the wall clock seconds that `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure_engine(
    engine: Engine, exact: Engine, ids: np.ndarray, world: MadeWorld, target: float, own_name: str = ""
) -> Iterator[Row]:
    """Yield the rows of an empty engine. `exact` has the windows and says what is right."""
    build = seconds(lambda: engine.add(ids, world.vectors))
    if isinstance(engine, Qdrant):
        build += seconds(engine.wait_until_indexed)
    tuned_on = round(TUNED_ON * len(world.texts))
    efforts: list[int | None] = [None]
    if isinstance(engine, Approximate) and not (isinstance(engine, Qdrant) and engine.exact):
        tune(engine, exact, world.texts[:tuned_on], target)
        efforts = [*list(engine.efforts)[::2], engine.effort]
    texts, filtered = world.texts[tuned_on:], ids[:: round(1 / FILTERED)]
    rows = []
    for place, effort in enumerate(efforts):
        if isinstance(engine, Approximate) and effort is not None:
            engine.effort = effort
        cpu, wall, late = timed_queries(engine, texts)
        recall = measure_recall(engine, exact, texts, world.clips)
        assert recall.text is not None
        assert recall.clip is not None
        values = (build, cpu, wall, late, recall.text, recall.clip, timed_queries(engine, texts[:20], filtered)[1])
        chosen = effort is not None and place == len(efforts) - 1
        rows.append(Row(own_name or engine.name, len(ids), effort, chosen, *values, None))
    remove = seconds(lambda: engine.remove(filtered))
    yield from (Row(**{**asdict(row), "remove_s": remove}) for row in rows)


def measure_all(settings: Settings) -> Iterator[Row]:
    """Yield the rows of all engines and sizes."""
    torch.set_num_threads(settings.threads)
    if find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(settings.threads)
    for count in settings.sizes:
        world = make_world(count, settings.embedding, settings.queries)
        ids = np.arange(count, dtype=np.int64) << 20
        exact = TorchExact(settings.embedding)
        exact.add(ids, world.vectors)
        for name in settings.only.split(","):
            measured = (ids, world, settings.target)
            if name in ("exact", "torch"):
                kind = FaissExact if name == "exact" else TorchExact
                yield from measure_engine(kind(settings.embedding), exact, *measured, own_name=name)
            elif name == "ivf":
                yield from measure_engine(IVF(settings.embedding), exact, *measured)
            elif settings.qdrant or count <= LOCAL_MODE:
                yield from measure_qdrant(settings, exact, measured)


def measure_qdrant(settings: Settings, exact: Engine, measured: tuple[np.ndarray, MadeWorld, float]) -> Iterator[Row]:
    """Yield the rows of a server, in a collection that is made and removed, or of the client's local mode."""
    from qdrant_client import QdrantClient

    client = connect(Address.parse(settings.qdrant)) if settings.qdrant else QdrantClient(":memory:")
    collection = f"benchmark_search_{len(measured[0])}"
    if client.collection_exists(collection):
        raise ValueError(f"--qdrant {quoted(settings.qdrant)} has a collection {collection}: remove it first")
    engine = Qdrant(client, collection, settings.embedding)
    engine.exact = not settings.qdrant
    try:
        yield from measure_engine(engine, exact, *measured, own_name="" if settings.qdrant else "qdrant, local mode")
    finally:
        client.delete_collection(collection)


def format_rows(rows: Sequence[Row]) -> str:
    """Return the table."""
    columns = ("engine", "N", "effort", "build s", "CPU ms", "wall ms", "p95", "text", "clip", "1 % ms", "remove s")
    lines = ["".join(f"{column:>{20 if column == 'engine' else 10}}" for column in columns)]
    for row in rows:
        effort = "-" if row.effort is None else f"{row.effort}{' *' if row.chosen else ''}"
        times = f"{row.build_s:>10.2f}{row.cpu_ms:>10.2f}{row.wall_ms:>10.2f}{row.wall_p95_ms:>10.2f}"
        recall = f"{row.text_recall:>10.3f}{row.clip_recall:>10.3f}{row.filtered_ms:>10.2f}{row.remove_s or 0:>10.3f}"
        lines.append(f"{row.engine:>20}{row.windows:>10}{effort:>10}{times}{recall}")
    return "\n".join(lines)


def report(settings: Settings) -> str:
    """Measure, write the file and return the text to print."""
    check_outputs(settings.output)
    rows = list(measure_all(settings))
    origin, where = origin_of(torch.device("cpu"))
    if settings.output:
        content = {"settings": asdict(settings), **origin, "rows": [asdict(row) for row in rows]}
        write_json(Path(settings.output), content)
    title = f"recall@{BEST} against exact search, made vectors, E {settings.embedding}; *: chosen for {settings.target}"
    lines = [title, where, "", format_rows(rows)]
    if "qdrant" in settings.only.split(",") and not settings.qdrant and max(settings.sizes) > LOCAL_MODE:
        lines.append(f"qdrant's local mode is not measured above {LOCAL_MODE:,} windows; --qdrant names a server")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(parse_settings(Settings, argv)))


if __name__ == "__main__":
    sys.exit(main())
