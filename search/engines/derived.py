"""What is derived from an index and kept in files: read if it fits what the index holds, else made again.

The index's own file is the truth; what lies here may be deleted at any time. `ivf-<stamp>.faiss` has the vectors in
lists, and `ivf.json` says of which windows, and which effort was chosen on which texts.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from engine.writing import write_atomically
from search.engines.base import Ids, Scores, Vectors
from search.engines.exact import build_exact
from search.engines.ivf import IVF
from search.recall import TARGET, tune

log = logging.getLogger("stop")

EXACT_UP_TO = 2_000_000  # windows; a query then takes about 0.1 s of one core


@dataclass(frozen=True)
class Tuning:
    """How an approximate engine was tuned: its effort, recall@10 on the texts, and the target."""

    effort: int
    recall: float
    target: float
    texts: int


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
    lists, facts = folder / f"ivf-{sha256(stamp.encode()).hexdigest()[:16]}.faiss", folder / "ivf.json"
    wanted = {"stamp": stamp, "size": size, "texts": sha256(texts.tobytes()).hexdigest(), "target": target}
    known, engine = _read_facts(facts), IVF(size)
    fits = _is_read(engine, lists, known) and all(known.get(name) == wanted[name] for name in ("stamp", "size"))
    if fits and (tuning := _known_tuning(known, wanted)):
        engine.effort = tuning.effort
        return engine, tuning
    ids, vectors = load()
    if not fits:
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
        for old in folder.glob("ivf-*.faiss"):
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
    if known.get("stamp") == stamp and isinstance(known.get("bound"), float):
        return known["bound"]
    bound = measure()
    try:
        write_atomically(path, lambda path: path.write_text(json.dumps({"stamp": stamp, "bound": bound}) + "\n"))
    except OSError as error:
        log.warning("The bound of what fits well was not kept, and is measured again next time: %s", error)
    return bound


def is_exact_enough(engine: str, count: int) -> bool:
    """Return whether the engine of this name is `exact`; "auto" is up to EXACT_UP_TO windows, and `ivf` beyond."""
    return engine == "exact" or (engine == "auto" and count <= EXACT_UP_TO)


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
    if any(known.get(name) != wanted[name] for name in ("texts", "target")):
        return None
    try:
        return Tuning(**known["tuning"])
    except (KeyError, TypeError):
        return None
