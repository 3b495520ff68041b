"""The adapter of Qdrant: addresses, what a collection refuses, export, and errors of a server.

The client's local mode stands in for a server that works; a small HTTP server stands in for one that refuses.
"""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from search.engines.qdrant import Address, Exported, Qdrant, connect


@pytest.fixture
def client():
    package = pytest.importorskip("qdrant_client", reason="Qdrant's client is not installed: pip install qdrant-client")
    client = package.QdrantClient(":memory:")
    yield client
    client.close()


def made(count: int, seed: int = 0):
    """Return ids, vectors, paths, starts and ends of windows; one path is not UTF-8."""
    vectors = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float16)
    paths = [b"/videos/\xff\xfe.mp4" if number == 1 else f"/videos/ü{number}.mp4".encode() for number in range(count)]
    return np.arange(count) << 20, vectors, paths, np.arange(count) * 2.5, np.arange(count) * 2.5 + 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qdrant://host", Address("http://host:6333", "")),
        ("qdrant://host:80/my_videos", Address("http://host:80", "my_videos")),
        ("qdrants://a.b.example/x/", Address("https://a.b.example:6333", "x")),
        ("qdrant://[::1]:7000", Address("http://[::1]:7000", "")),
    ],
)
def test_addresses(text, expected):
    assert Address.parse(text) == expected


@pytest.mark.parametrize("text", ["http://host", "qdrant://", "qdrant://h:x", "qdrant://h/a/b", "qdrant://h/?a=b", "h"])
def test_wrong_addresses(text):
    with pytest.raises(ValueError, match=r"is not of the form qdrant://HOST\[:PORT\]"):
        Address.parse(text)


def test_a_key_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="set QDRANT_API_KEY") as refusal:
        Address.parse("qdrant://me:secret@host")
    assert "secret" not in str(refusal.value)


def test_export_sends_what_changed(client):
    engine = Qdrant(client, "mine", 8, model="key")
    ids, vectors, paths, starts, ends = made(6)
    assert engine.export(ids, vectors, paths, starts, ends) == Exported(sent=6, removed=0, unchanged=0)
    assert engine.export(ids, vectors, paths, starts, ends) == Exported(sent=0, removed=0, unchanged=6)
    vectors[4] = made(1, seed=1)[1]
    paths[2] = b"/moved.mp4"
    starts[3] += 0.5
    kept = slice(1, 6)
    found = engine.export(ids[kept], vectors[kept], paths[kept], starts[kept], ends[kept])
    assert found == Exported(sent=3, removed=1, unchanged=2)
    assert engine.count == 5
    windows = engine.windows(ids)
    assert windows[0] is None
    assert windows[1:] == list(zip(paths[kept], starts[kept], ends[kept], strict=True))
    assert engine.search(vectors[4:5].astype(np.float32), 1)[1].tolist() == [[ids[4]]]
    assert engine.wait_until_indexed(0)


def test_an_interrupted_export_goes_on(client, monkeypatch):
    monkeypatch.setattr("search.engines.qdrant.SENT", 2)
    monkeypatch.setattr("search.engines.qdrant.PAGE", 2)
    monkeypatch.setattr("search.engines.qdrant.ALLOWED", 2)
    engine, windows = Qdrant(client, "mine", 8), made(7)
    send, calls = engine._send, []

    def fail_at_the_third(*points):
        calls.append(points)
        if len(calls) == 3:
            raise OSError("the cable is out")
        send(*points)

    monkeypatch.setattr(engine, "_send", fail_at_the_third)
    with pytest.raises(OSError, match="cable"):
        engine.export(*windows)
    assert engine.export(*windows) == Exported(sent=3, removed=0, unchanged=4)
    assert engine.export(*(part[:1] for part in windows)) == Exported(sent=0, removed=6, unchanged=1)
    assert engine.count == 1


def test_a_filter_longer_than_a_request(client, monkeypatch):
    monkeypatch.setattr("search.engines.qdrant.ALLOWED", 3)
    monkeypatch.setattr("search.engines.qdrant.ASKED", 2)
    engine, (ids, vectors, *_) = Qdrant(client, "mine", 8), made(20)
    engine.add(ids, vectors)
    queries = made(5, seed=2)[1].astype(np.float32)
    scores, found = engine.search(queries, 4, ids[:10])
    products = queries @ vectors[:10].astype(np.float32).T
    expected = np.argsort(-products, axis=1)[:, :4]
    assert (found == ids[expected]).all()
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, 1), rtol=1e-5)


def test_nothing_is_sent_of_a_bad_export(client):
    engine, (ids, vectors, paths, starts, ends) = Qdrant(client, "mine", 8), made(3)
    vectors[2, 0] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        engine.export(ids, vectors, paths, starts, ends)
    assert engine.count == 0


def test_collections_that_do_not_fit(client):
    from qdrant_client import models

    Qdrant(client, "mine", 8, model="first").export(*made(2))
    Qdrant(client, "mine", 8, model="first")
    client.create_collection("cosine", models.VectorParams(size=8, distance=models.Distance.COSINE))
    client.create_collection("named", {"image": models.VectorParams(size=8, distance=models.Distance.DOT)})
    for collection, size, message in [
        ("mine", 8, r"another model \(key 'first', not 'second'\)"),
        ("mine", 4, "has vectors of size 8, the model's have 4"),
        ("cosine", 8, "was not made by an export"),
        ("named", 8, "was not made by an export"),
    ]:
        with pytest.raises(ValueError, match=message):
            Qdrant(client, collection, size, model="second")


class Refusing(BaseHTTPRequestHandler):
    """Answers all requests with 403."""

    def do_GET(self):
        body = b'{"status": {"error": "Forbidden"}}'
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def refusing_server() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_server_that_refuses(client, refusing_server):
    with pytest.raises(OSError, match=r"127.0.0.1:\d+ refused a request \(403\): .*Forbidden.*; set QDRANT_API_KEY"):
        connect(Address.parse(f"qdrant://127.0.0.1:{refusing_server}"))


def test_no_server(client, refusing_server):
    with HTTPServer(("127.0.0.1", 0), Refusing) as closed:
        port = closed.server_port
    with pytest.raises(OSError, match=rf"http://127.0.0.1:{port} does not answer .*: start it, or check host and port"):
        connect(Address.parse(f"qdrant://127.0.0.1:{port}"))


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ValueError, match="pip install qdrant-client"):
        connect(Address.parse("qdrant://host"))
