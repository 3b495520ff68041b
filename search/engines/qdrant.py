"""A Qdrant server as engine, for an index that several machines share: https://qdrant.tech.

`export` copies an index to a collection; later exports send only what changed. A point is a window: its id, its vector
in half precision, and a payload with the file's path, start and end in seconds, and the model's key. The distance of a
collection is the dot product, as vectors have unit length.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from dataloaders.quoting import quoted
from search.engines.base import NOTHING, Approximate, Ids, Scores, Vectors, check_vectors

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

PORT = 6333
SENT = 500  # points of one request, about 5 MB of JSON
ALLOWED = 100_000  # ids of a filter in one request; Qdrant refuses requests above 32 MB
ASKED = 100  # queries of one request
PAGE = 10_000  # points of one page of a listing
PATIENCE = 60  # seconds that a request may take
EFFORTS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # hnsw_ef


@dataclass(frozen=True)
class Address:
    """Where a server is, and the collection on it; "" stands for the one that is named after the model."""

    url: str
    collection: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read qdrant://HOST[:PORT][/COLLECTION], or qdrants:// for TLS; raises ValueError for anything else."""
        form = f"{quoted(text)} is not of the form qdrant://HOST[:PORT][/COLLECTION] (or qdrants:// for TLS)"
        try:
            parts = urlsplit(text)
            port = parts.port or PORT
        except ValueError as error:
            raise ValueError(form) from error
        if "@" in parts.netloc:
            raise ValueError("a key does not belong into qdrant://, where others can read it: set QDRANT_API_KEY")
        collection = parts.path.strip("/")
        extra = parts.query or parts.fragment or not re.fullmatch(r"[\w.-]*", collection)
        if parts.scheme not in ("qdrant", "qdrants") or not parts.hostname or extra:
            raise ValueError(form)
        scheme = "https" if parts.scheme == "qdrants" else "http"
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(f"{scheme}://{host}:{port}", collection)


@dataclass(frozen=True)
class Exported:
    """Windows sent to the server, removed from it, and left as they were."""

    sent: int
    removed: int
    unchanged: int


class Qdrant(Approximate):
    """A collection. `effort` is hnsw_ef; with `exact`, the server compares all vectors, which is what recall is
    measured against."""

    name: ClassVar = "qdrant"

    def __init__(self, client: "QdrantClient", collection: str, size: int, model: str = "") -> None:
        """Open a collection, or make it.

        Raises ValueError if it has vectors of another size or distance, or of another model; OSError without an answer.
        """
        from qdrant_client import models

        super().__init__(size)
        self.client, self.collection, self.model, self.effort, self.exact = client, collection, model, 128, False
        with _answers():
            if not client.collection_exists(collection):
                vectors = models.VectorParams(
                    size=size, distance=models.Distance.DOT, datatype=models.Datatype.FLOAT16, on_disk=True
                )
                client.create_collection(collection, vectors)
            self._check()

    def _check(self) -> None:
        from qdrant_client import models

        found = self.client.get_collection(self.collection).config.params.vectors
        fix = "name another collection: qdrant://HOST/COLLECTION"
        if not isinstance(found, models.VectorParams) or found.distance != models.Distance.DOT:
            raise ValueError(f"the collection {quoted(self.collection)} was not made by an export of an index: {fix}")
        if found.size != self.size:
            raise ValueError(
                f"the collection {quoted(self.collection)} has vectors of size {found.size}, the model's have "
                f"{self.size}: {fix}"
            )
        points, _ = self.client.scroll(self.collection, limit=1, with_payload=["model"])
        other = (points[0].payload or {}).get("model") if points else self.model
        if self.model and other != self.model:
            raise ValueError(
                f"the collection {quoted(self.collection)} was made with another model (key {quoted(other)}, not "
                f"{quoted(self.model)}): {fix}"
            )

    @property
    def efforts(self) -> Sequence[int]:
        return EFFORTS

    @property
    def count(self) -> int:
        with _answers():
            return self.client.count(self.collection, exact=True).count

    def close(self) -> None:
        self.client.close()

    def windows(self, ids: Ids) -> list[tuple[bytes, float, float] | None]:
        """Return path, start and end in seconds of each window of int64 `[n]`; None for one that is not there."""
        with _answers():
            points = self.client.retrieve(self.collection, ids.tolist(), with_payload=True)
        found = {point.id: point.payload or {} for point in points}
        return [_window(found[number]) if number in found else None for number in ids.tolist()]

    def export(
        self, ids: Ids, vectors: Vectors, paths: Sequence[bytes], starts: NDArray[Any], ends: NDArray[Any]
    ) -> Exported:
        """Make the collection hold these N windows and no others; send what is new or changed.

        `vectors` is float16 `[N,E]`, all others have N entries. If it is interrupted, the next call goes on. Raises
        ValueError as `add` does, before anything is sent.
        """
        check_vectors(ids, vectors, self.size)
        sent, there = 0, self._stamps()
        for first in range(0, len(ids), SENT):
            rows = range(first, min(first + SENT, len(ids)))
            payloads = {row: self._payload(paths[row], starts[row], ends[row], vectors[row]) for row in rows}
            changed = [row for row in rows if there.get(int(ids[row])) != payloads[row]["stamp"]]
            if changed:
                self._send(ids[changed], vectors[changed], [payloads[row] for row in changed])
            sent += len(changed)
        gone = np.setdiff1d(np.array(list(there), np.int64), ids)
        self.remove(gone)
        return Exported(sent, len(gone), len(ids) - sent)

    def wait_until_indexed(self, seconds: float = 3600) -> bool:
        """Return whether the server has built its graph over all points, after at most `seconds`.

        Until then, searches are complete but slow, and an effort cannot be chosen.
        """
        end = time.monotonic() + seconds
        while True:
            with _answers():
                status = self.client.get_collection(self.collection).status
            if status == "green" or time.monotonic() >= end:
                return status == "green"
            time.sleep(1)

    def _payload(self, path: bytes, start: float, end: float, vector: NDArray[np.float16]) -> dict[str, Any]:
        stamp = blake2b(vector.tobytes() + repr((path, float(start), float(end))).encode(), digest_size=8).hexdigest()
        text = path.decode("utf-8", "backslashreplace")  # JSON has no bytes
        payload = {"path": text, "start": float(start), "end": float(end), "model": self.model, "stamp": stamp}
        return payload if text.encode() == path else payload | {"path_hex": path.hex()}

    def _stamps(self) -> dict[int, str]:
        """Return what each point's stamp is, by id."""
        found: dict[int, str] = {}
        page: Any = None
        while True:
            with _answers():
                points, page = self.client.scroll(self.collection, limit=PAGE, offset=page, with_payload=["stamp"])
            found |= {int(point.id): (point.payload or {}).get("stamp", "") for point in points}
            if page is None:
                return found

    def _send(self, ids: Ids, vectors: Vectors, payloads: list[dict[str, Any]]) -> None:
        from qdrant_client import models

        points = models.Batch(ids=ids.tolist(), vectors=vectors.astype(np.float32).tolist(), payloads=payloads)
        with _answers():
            self.client.upsert(self.collection, points, wait=True)

    def _add(self, ids: Ids, vectors: Vectors) -> None:
        for first in range(0, len(ids), SENT):
            part = slice(first, first + SENT)
            self._send(ids[part], vectors[part], [{"model": self.model}] * len(ids[part]))

    def _remove(self, ids: Ids) -> None:
        for first in range(0, len(ids), ALLOWED):
            with _answers():
                self.client.delete(self.collection, ids[first : first + ALLOWED].tolist(), wait=True)

    def _search(self, queries: Scores, k: int, allowed: Ids | None) -> tuple[Scores, Ids]:
        from qdrant_client import models

        if allowed is None:
            return self._ask(queries, k, None)
        parts = []
        for first in range(0, len(allowed), ALLOWED):
            has_id = models.HasIdCondition(has_id=allowed[first : first + ALLOWED].tolist())
            parts.append(self._ask(queries, k, models.Filter(must=[has_id])))
        scores, ids = (np.concatenate(both, axis=1) for both in zip(*parts, strict=True))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)

    def _ask(self, queries: Scores, k: int, condition: Any) -> tuple[Scores, Ids]:
        from qdrant_client import models

        scores, ids = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), NOTHING, np.int64)
        params = models.SearchParams(hnsw_ef=max(self.effort, k), exact=self.exact)
        for first in range(0, len(queries), ASKED):
            asked = [
                models.QueryRequest(query=query, limit=k, filter=condition, params=params)
                for query in queries[first : first + ASKED].tolist()
            ]
            with _answers():
                answers = self.client.query_batch_points(self.collection, asked)
            for row, answer in enumerate(answers, first):
                scores[row, : len(answer.points)] = [point.score for point in answer.points]
                ids[row, : len(answer.points)] = [point.id for point in answer.points]
        return scores, ids


def connect(address: Address) -> "QdrantClient":
    """Return a client of the server; its key is the environment variable QDRANT_API_KEY, if set.

    Raises ValueError if the client is not installed, OSError if the server does not answer.
    """
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise ValueError("qdrant:// needs Qdrant's client: pip install qdrant-client") from error

    key = os.environ.get("QDRANT_API_KEY") or None  # the client warns where it would be sent unencrypted
    client = QdrantClient(url=address.url, api_key=key, timeout=PATIENCE, check_compatibility=False)
    with _answers(address.url):
        client.get_collections()
    return client


@contextmanager
def _answers(url: str = "") -> Iterator[None]:
    """Turn the client's errors into an OSError with a sentence."""
    from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

    where = f"the Qdrant server {url}".rstrip()
    try:
        yield
    except UnexpectedResponse as error:
        reason = quoted(error.content.decode("utf-8", "replace"), 200)
        fix = "; set QDRANT_API_KEY" if error.status_code in (401, 403) else ""
        raise OSError(f"{where} refused a request ({error.status_code}): {reason}{fix}") from error
    except ResponseHandlingException as error:
        raise OSError(f"{where} does not answer ({error}): start it, or check host and port") from error
    except ApiException as error:
        raise OSError(f"{where} gave an answer that its client cannot read: {error}") from error


def _window(payload: dict[str, Any]) -> tuple[bytes, float, float]:
    path = bytes.fromhex(payload["path_hex"]) if "path_hex" in payload else payload["path"].encode()
    return path, payload["start"], payload["end"]
