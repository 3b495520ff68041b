"""Writes the vectors of an index for other programs. Shapes: N windows, E joint embedding."""

import json
import os
import re
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from engine.flags import check_file
from engine.writing import write_atomically
from search.store import Model, Store, Window

if TYPE_CHECKING:
    from search.engines.qdrant import Qdrant


class Rows(NamedTuple):
    """All windows of a model: int64 [N], N windows, fp16 [N, E], and the model's facts."""

    ids: np.ndarray
    windows: list[Window]
    vectors: np.ndarray
    facts: dict[str, Any]


def export_to(store: Store, model: Model, target: str) -> int:
    """Write all windows of a model to a file, whose ending says how, or to a Qdrant server; return their number.

    .npz: arrays ids, vectors, starts, ends and files, and the model's facts as JSON. .json: an object with the facts
    and a list of windows. .parquet: one row a window, with the columns id, file, path (bytes), start, end and vector.

    qdrant://HOST/COLLECTION: see search/engines/qdrant.py; only what changed since the last export is sent.

    Raises ValueError for another ending, or if a library is missing; OSError if the file cannot be written or the
    server does not answer.
    """
    if is_server(target):
        with closing(open_server(target, model)) as server:
            return _send(store, model, server)
    path = Path(target)
    check_file("--to", path, tuple(WRITERS))
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ValueError(f"--to {target}: .parquet needs pyarrow: pip install pyarrow, or pass .npz or .json")
    ids, vectors = store.matrix(model)
    rows = Rows(ids, store.windows(model, ids), vectors, {"name": model.name, "key": model.key, **model.facts})
    write_atomically(path, lambda partial: WRITERS[path.suffix](partial, rows))
    return len(ids)


def is_server(target: str) -> bool:
    """Return whether an address is that of a Qdrant server."""
    return target.startswith(("qdrant:", "qdrants:"))


def open_server(target: str, model: Model) -> "Qdrant":
    """Return a server's collection for a model, named after it if the address names none."""
    from search.engines.qdrant import Address, Qdrant, connect

    address = Address.parse(target)
    name = address.collection or re.sub(r"[^\w.-]", "_", f"{model.name}-{model.key[:12]}")
    return Qdrant(connect(address), name, model.dimension, model.key)


def _send(store: Store, model: Model, server: "Qdrant") -> int:
    ids, vectors = store.matrix(model)
    windows = store.windows(model, ids)
    starts, ends = (np.array([getattr(window, name) for window in windows]) for name in ("start", "end"))
    server.export(ids, vectors, [os.fsencode(window.file) for window in windows], starts, ends)
    return len(ids)


def _write_npz(path: Path, rows: Rows) -> None:
    times = {name: np.array([getattr(window, name) for window in rows.windows]) for name in ("start", "end")}
    files, facts = np.array([window.file for window in rows.windows], dtype=np.str_), np.array(json.dumps(rows.facts))
    with open(path, "wb") as file:  # given a name, numpy would add an ending
        np.savez(
            file, ids=rows.ids, vectors=rows.vectors, starts=times["start"], ends=times["end"], files=files, model=facts
        )


def _write_json(path: Path, rows: Rows) -> None:
    windows = [
        {"id": int(id_), "file": file, "start": start, "end": end, "vector": vector.tolist()}
        for id_, (file, start, end), vector in zip(rows.ids, rows.windows, rows.vectors, strict=True)
    ]
    path.write_text(json.dumps({"model": rows.facts, "windows": windows}))


def _write_parquet(path: Path, rows: Rows) -> None:
    import pyarrow
    from pyarrow import parquet

    paths = [os.fsencode(window.file) for window in rows.windows]
    size = rows.vectors.shape[1]
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.vectors.astype(np.float32).ravel()), size)
    table = pyarrow.table(
        {
            "id": rows.ids,
            "file": [path.decode(errors="backslashreplace") for path in paths],
            "path": pyarrow.array(paths, pyarrow.binary()),
            "start": [window.start for window in rows.windows],
            "end": [window.end for window in rows.windows],
            "vector": vectors,
        }
    )
    parquet.write_table(table.replace_schema_metadata({"model": json.dumps(rows.facts)}), path)


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    ".npz": _write_npz, ".json": _write_json, ".parquet": _write_parquet,
}  # fmt: skip
