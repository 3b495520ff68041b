"""Chooses the engine of an index, and keeps in files what is derived from it: read if it fits, else made again.

The index's own file is the truth; what lies here may be deleted at any time. `ivf-<stamp>.faiss` has the vectors in
lists, and `ivf.json` says of which windows, and which effort was chosen on which texts.
"""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.writing import write_atomically
from search.engines.base import INSTALL, Engine, Ids, Scores, Vectors
from search.engines.exact import build_exact
from search.engines.ivf import IVF, choose_lists
from search.ranking import SAMPLED, sample_gallery
from search.recall import TARGET, tune

log = logging.getLogger("stop")

EXACT_UP_TO = 2_000_000  # windows; a query then takes about 0.1 s of one core
FACTS = "ivf.json"


@dataclass(frozen=True)
class Tuning:
    """How an approximate engine was tuned: its effort, recall@10 on the texts, and the target."""

    effort: int
    recall: float
    target: float
    texts: int


def is_exact_enough(count: int) -> bool:
    """Return whether an index of this many windows is searched exactly."""
    return count <= EXACT_UP_TO


def stamp_of(ids: Ids) -> str:
    """Return the sha256 of the ids of an index, in hexadecimal. It stands for the vectors too, because an id never
    means another content."""
    return sha256(ids.tobytes()).hexdigest()


def place(folder: Path, kind: str, key: str) -> Path:
    """Return where an index keeps what it derives for the model with this key."""
    return folder / f"{kind}-{key[:16]}"


def remove_derived(folder: Path, key: str) -> None:
    """Remove what was derived for a model that the index no longer has."""
    for path in folder.glob(place(folder, "*", key).name + "*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def open_engine(
    folder: Path, ids: Ids, size: int, load: Callable[[], tuple[Ids, Vectors]], texts: Callable[[], Scores]
) -> tuple[Engine, Scores]:
    """Return the engine for an index of the windows `ids`, and a sample of their vectors (`ranking.sample_gallery`).

    The engine is exact up to EXACT_UP_TO windows. Beyond, it is the inverted file kept in `folder`, with the effort
    that `texts` need, or exact where faiss is missing. `load` returns ids and vectors of the windows.
    """
    if not is_exact_enough(len(ids)):
        if find_spec("faiss"):
            lists, _ = open_ivf(folder, stamp_of(ids), size, load, texts())
            return lists, lists.sample(SAMPLED)
        log.warning(
            "Without faiss, torch compares all %s windows with each query, which takes seconds: %s",
            f"{len(ids):,}", INSTALL,
        )  # fmt: skip
    ids, vectors = load()
    exact = build_exact(size)
    exact.add(ids, vectors)
    return exact, sample_gallery(vectors)


def engine_facts(folder: Path, count: int, size: int, ids: Callable[[], Ids]) -> dict[str, Any]:
    """Return which engine `open_engine` takes for `count` windows, for people who ask; loads no vectors.

    "bytes" is its size in memory. Of the inverted file, "fits" says whether its file is that of these windows; if so,
    "effort" of "lists" are searched, which gave "recall" on "texts" when the effort was chosen.
    """
    library = "faiss" if find_spec("faiss") else "torch"
    if is_exact_enough(count) or library == "torch":
        return {"name": "exact", "library": library, "bytes": 2 * size * count}
    known = _read_facts(folder / FACTS)
    facts = {"name": IVF.name, "library": library, "lists": choose_lists(count), "fits": False}
    tuning = _tuning_in(known)
    if known.get("stamp") != stamp_of(ids()) or tuning is None or not _lists_of(folder, known["stamp"]).exists():
        return facts
    return facts | {"fits": True, "bytes": known["bytes"], **asdict(tuning)}


def fingerprint(ids: Ids, vectors: Vectors) -> str:
    """Return the sha256, in hexadecimal, of ids and vectors in their order."""
    hashed = sha256(repr(vectors.shape).encode())
    for array in (ids, vectors):
        hashed.update(memoryview(array.data if array.flags.c_contiguous else array.copy().data).cast("B"))
    return hashed.hexdigest()


def open_ivf(
    folder: Path,
    stamp: str,
    size: int,
    load: Callable[[], tuple[Ids, Vectors]],
    texts: Scores,
    target: float = TARGET,
) -> tuple[IVF, Tuning]:
    """Return the engine over the windows that `load` gives, with the effort chosen on `texts`, float32 `[Q,E]`.

    `stamp` changes when the windows do (`fingerprint`, or a cheaper one). The file in `folder` is read if it was made
    for the same stamp; else it is made again, as it is if it is damaged. The effort is chosen again for other texts or
    another target. A folder that cannot be written costs a warning and the time to make it again. Raises ValueError
    without faiss or texts, and for a target out of range.
    """
    lists, facts = _lists_of(folder, stamp), folder / FACTS
    wanted = {"stamp": stamp, "size": size, "texts": sha256(texts.tobytes()).hexdigest(), "target": target}
    known, engine = _read_facts(facts), IVF(size)
    fits = _is_read(engine, lists, known) and all(known.get(name) == wanted[name] for name in ("stamp", "size"))
    if fits and (tuning := _known_tuning(known, wanted)):
        engine.effort = tuning.effort
        return engine, tuning
    ids, vectors = load()
    if not fits:
        log.warning("Sorting %s windows into lists for approximate search, once for these windows.", f"{len(ids):,}")
        engine = IVF(size)
        engine.add(ids, vectors)
    exact = build_exact(size)
    exact.add(ids, vectors)
    recall = tune(engine, exact, texts, target)
    exact.close()
    tuning = Tuning(engine.effort, recall, target, len(texts))
    try:
        if not fits:
            write_atomically(lists, engine.save)
        wanted |= {"bytes": lists.stat().st_size, "tuning": asdict(tuning)}
        write_atomically(facts, lambda path: path.write_text(json.dumps(wanted, indent=1) + "\n"))
        for old in folder.glob("ivf-*"):  # also parts of a file whose writing was killed
            if old != lists:
                old.unlink(missing_ok=True)
    except OSError as error:
        log.warning("The lists of the approximate engine were not kept, and are made again next time: %s", error)
    return engine, tuning


def open_bound(path: Path, stamp: str, measure: Callable[[], float]) -> float:
    """Return the number that `path` keeps for this stamp; else what `measure` returns, which is then kept there.

    Meant for `ranking.bound_of_nonsense`, which takes 200 searches. A file that cannot be written costs a warning.
    """
    known = _read_facts(path)
    if known.get("stamp") == stamp and isinstance(known.get("stands_out"), float):  # "bound" was a score once
        return known["stands_out"]
    bound = measure()
    try:
        write_atomically(path, lambda path: path.write_text(json.dumps({"stamp": stamp, "stands_out": bound}) + "\n"))
    except OSError as error:
        log.warning("The bound of what fits well was not kept, and is measured again next time: %s", error)
    return bound


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _is_read(engine: IVF, lists: Path, known: dict[str, Any]) -> bool:
    """Load the lists if their file is the one that `known` describes; return whether that worked."""
    try:
        if lists.stat().st_size != known.get("bytes"):
            return False
        engine.load(lists)
    except (OSError, ValueError):
        return False
    return True


def _known_tuning(known: dict[str, Any], wanted: dict[str, Any]) -> Tuning | None:
    return None if any(known.get(name) != wanted[name] for name in ("texts", "target")) else _tuning_in(known)


def _tuning_in(known: dict[str, Any]) -> Tuning | None:
    try:
        return Tuning(**known["tuning"])
    except (KeyError, TypeError):
        return None


def _lists_of(folder: Path, stamp: str) -> Path:
    return folder / f"ivf-{sha256(stamp.encode()).hexdigest()[:16]}.faiss"
