"""Runs `recall`: how much of what exact search finds an approximate engine finds, for texts and for clips apart.

The engine is the inverted file, which a query uses beyond `derived.EXACT_UP_TO` windows, or a server. Clips are windows
of the index; texts are the user's, or `recall.probe_texts`.

Shapes: Q queries, N windows, E joint embedding.
"""

import json
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dataloaders.quoting import shorten
from search.commands import open_index
from search.engines.base import Approximate, Engine, Ids, Scores
from search.engines.derived import EXACT_UP_TO, is_exact_enough
from search.engines.exact import build_exact
from search.engines.ivf import IVF
from search.index import Index
from search.recall import QUERIES, TARGET, measure_recall, pick_clips, probe_texts, tune

TIMED = 20  # texts that are searched one by one for the time of a query


@dataclass(frozen=True)
class Row:
    """What an effort gives: mean recall@10 over texts and over clips, from 0 to 1, and milliseconds of a query."""

    effort: int
    text: float
    clip: float
    ms: float


@dataclass(frozen=True)
class Measured:
    """What `recall` tells. `is_used` says that queries use this engine with `effort`; else they are exact, and the
    engine was made only to be measured."""

    model: str
    windows: int
    engine: str
    is_used: bool
    effort: int
    texts: int
    clips: int
    rows: list[Row]


def run_recall(flags: Namespace) -> int:
    """Measure and print; return the exit code."""
    given = read_texts(Path(flags.queries)) if flags.queries else []
    with open_index(flags) as index:
        measured = measure(index, bool(flags.server), given)
    print(json.dumps(asdict(measured), indent=1) if flags.json else _table(measured))
    return 0


def read_texts(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty. Raises OSError if it cannot be read, and ValueError if it is
    no regular file, no UTF-8, or has none."""
    if not path.is_file():  # reading a pipe or a device might never end
        raise ValueError(f"--queries {shorten(str(path), 200)}: there is no such file; pass one with a query a line")
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"--queries {path}: is no text in UTF-8; pass a file with one query a line") from error
    if not texts:
        raise ValueError(f"--queries {path}: has no line with a query; pass a file with one query a line")
    return texts


def measure(index: Index, is_server: bool, given: list[str]) -> Measured:
    """Compare the approximate engine of an index with exact search, on the texts `given`, or on those of the project.

    Raises ValueError for an index without windows, and without faiss.
    """
    ids, vectors = index.vectors()
    if not len(ids):
        raise ValueError(f"{index.store.folder} has no windows of the model {shorten(index.model.name)} yet")
    probes = index.vectors_of_texts("probes", probe_texts)
    texts = index.encoder.encode_texts(given) if given else probes
    exact = build_exact(index.model.dimension)
    exact.add(ids, vectors)
    is_used = is_server or not is_exact_enough(len(ids))
    if is_used and isinstance(index.engine, Approximate):
        engine = index.engine
    else:
        engine = IVF(index.model.dimension)
        engine.add(ids, vectors)
        tune(engine, exact, probes)
    used, (clips, own) = engine.effort, pick_clips(ids, vectors)
    rows = list(measure_efforts(engine, exact, texts, clips, own))
    return Measured(index.model.name, len(ids), engine.name, is_used, used, len(texts), len(clips), rows)


def measure_efforts(engine: Approximate, exact: Engine, texts: Scores, clips: Scores, own: Ids) -> Iterator[Row]:
    """Yield what each effort of an engine gives, ascending, until nothing is lost. Queries are float32 `[Q,E]`, and
    `own` `[Q]` are the ids of the clips; there is one of each at least."""
    for effort in engine.efforts:
        engine.effort = effort
        begun = time.perf_counter()
        for text in texts[:TIMED]:
            engine.search(text[None], 10)
        ms = 1000 * (time.perf_counter() - begun) / len(texts[:TIMED])
        recall = measure_recall(engine, exact, texts, clips, own)
        assert recall.text is not None
        assert recall.clip is not None
        yield Row(effort, recall.text, recall.clip, ms)
        if recall.text == recall.clip == 1:
            return


def _table(measured: Measured) -> str:
    """Return a table for people; a star marks the effort that queries use, or would use."""
    unit = "lists" if measured.engine == IVF.name else "hnsw_ef"
    lines = [
        f"recall@10 of the engine {measured.engine} against exact search: model {shorten(measured.model)}, "
        f"{measured.windows:,} windows, {measured.texts} texts, {measured.clips} clips of the index",
        f" {unit:>8}  {'texts':>6}  {'clips':>6}  {'ms a query':>10}",
    ]
    for row in measured.rows:
        star = "*" if row.effort == measured.effort else " "
        lines.append(f"{star}{row.effort:8}  {row.text:6.3f}  {row.clip:6.3f}  {row.ms:10.2f}")
    if measured.engine != IVF.name:
        lines.append(f"* what a query with --server uses: {measured.effort}")
    elif measured.is_used:
        lines.append(
            f"* what a query uses: {measured.effort}, chosen for {TARGET} on the {QUERIES} texts of the project"
        )
    else:
        lines.append(
            f"This index is searched exactly, as all of up to {EXACT_UP_TO:,} windows are. With more, the engine would "
            f"take *, the least that gives {TARGET} on the {QUERIES} texts of the project."
        )
    return "\n".join(lines)
