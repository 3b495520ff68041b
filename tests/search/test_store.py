"""The database: what is put in comes out, also after kill -9, with several writers, and read-only."""

import datetime
import multiprocessing
import os
import signal
import sqlite3

import numpy as np
import pytest

from search.database import NAME, SCHEMA
from search.store import PER_FILE, Content, Store

FACTS = {"dimension": 4, "content": {}, "source": {}, "noted": {}}


def unit_rows(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 4))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def put(store, model, path, count=3, key="", reason="", mtime=5):
    starts = [2.0 * number for number in range(count)]
    content = Content(path, 10, mtime, key or f"key of {path!a}", 2.0 * count)
    store.put(content, model, starts, [start + 4 for start in starts], unit_rows(count, len(path)), reason)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "index", write=True) as opened:
        yield opened


def test_vectors_come_out_as_they_went_in(store):
    model = store.add_model("k1", "stop", FACTS)
    put(store, model, "/v/a.mp4")
    put(store, model, "/v/b\udcff.mp4", 2)
    put(store, model, "/v/broken.mp4", 0, reason="/v/\udcff is broken")
    ids, vectors = store.matrix(model)
    assert ids.tolist() == [PER_FILE, PER_FILE + 1, PER_FILE + 2, 2 * PER_FILE, 2 * PER_FILE + 1]
    assert (ids == store.ids(model)).all()
    assert (vectors == np.concatenate([unit_rows(3, 8), unit_rows(2, 9)])).all()
    assert (store.vector(model, ids[3]) == vectors[3]).all()
    assert store.windows(model, ids[[4, 0]]) == [("/v/b\udcff.mp4", 2.0, 6.0), ("/v/a.mp4", 0.0, 4.0)]
    assert store.totals(model) == (2, 5, 10.0)
    assert store.failures(model) == [("/v/broken.mp4", "/v/\udcff is broken")]
    assert store.tried(model) == {1: "", 2: "", 3: "/v/\udcff is broken"}
    assert not store.check()
    for wrong in (ids[0] + 3, 3 * PER_FILE, 9 * PER_FILE):
        with pytest.raises(KeyError):
            store.windows(model, [wrong])
        with pytest.raises(KeyError):
            store.vector(model, wrong)


def test_parts_of_the_vectors(store):
    model = store.add_model("k1", "stop", FACTS)
    for name, count in (("a", 3), ("bb", 0), ("ccc", 2)):
        put(store, model, f"/v/{name}.mp4", count)
    ids, vectors = store.matrix(model)
    some_ids, some = store.vectors_of(model, [3, 2, 9])
    assert (some_ids == ids[3:]).all()
    assert (some == vectors[3:]).all()
    none_ids, none = store.vectors_of(model, [])
    assert (none_ids.shape, none.shape, none.dtype) == ((0,), (0, 4), np.float16)
    assert store.file(3) == store.files()[2]
    with pytest.raises(KeyError):
        store.file(9)


def test_another_connection_notices_that_something_was_written(store, tmp_path):
    model = store.add_model("k1", "stop", FACTS)
    with Store(tmp_path / "index") as reader:
        version = reader.data_version()
        assert reader.data_version() == version
        put(store, model, "/v/a.mp4")
        assert reader.data_version() != version


def test_ids_belong_to_one_content(store):
    one, two = (store.add_model(key, key, FACTS) for key in ("k1", "k2"))
    for model in (one, two):
        put(store, model, "/v/a.mp4")
        put(store, model, "/v/b.mp4")
    put(store, one, "/v/a.mp4", key="other content")  # the other model's vectors of the old content go
    assert [id_ // PER_FILE for id_ in store.ids(one)] == [2, 2, 2, 3, 3, 3]
    assert [id_ // PER_FILE for id_ in store.ids(two)] == [2, 2, 2]
    put(store, one, "/v/b.mp4", 2)  # the same content, tried again: new ids for both models
    assert [id_ // PER_FILE for id_ in store.ids(one)] == [3, 3, 3, 4, 4]
    assert [id_ // PER_FILE for id_ in store.ids(two)] == [4, 4, 4]
    assert [file.path for file in store.files()] == ["/v/a.mp4", "/v/b.mp4"]
    store.remove(store.files("/v/b.mp4"))
    put(store, one, "/v/c.mp4", 1)
    assert store.ids(one).tolist()[-1] == 5 * PER_FILE  # the ids of what was removed do not return
    store.remove_model(one)
    assert [model.name for model in store.models()] == ["k2"]
    assert not len(store.ids(two))


def test_files_exchange_their_names(store):
    model = store.add_model("k", "stop", FACTS)
    for path in ("/v/a.mp4", "/v/b.mp4", "/v/c.mp4", "/v/d.mp4"):
        put(store, model, path)
    a, b, c, d = store.files()
    store.update([(a, "/v/b.mp4", 7), (b, "/v/a.mp4", 8), (c, "/v/d.mp4", 9)], [])
    assert [(file.id, file.path, file.mtime_ns) for file in store.files()] == [
        (b.id, "/v/a.mp4", 8), (a.id, "/v/b.mp4", 7), (c.id, "/v/d.mp4", 9),
    ]  # fmt: skip
    assert d.id not in store.tried(model)


def test_filters(store):
    model = store.add_model("k", "stop", FACTS)
    store.add_root("/v", False)
    day = 86400 * 10**9
    for number, path in enumerate(("/v/a.mp4", "/v/sub/b.mp4", "/w/a.mp4")):
        put(store, model, path, 1, mtime=number * day)
    at = [datetime.datetime.fromtimestamp(86400 * number, datetime.timezone.utc) for number in range(4)]

    def files(**filters):
        return [window.file for window in store.windows(model, store.ids_in(model, **filters))]

    assert files() == ["/v/a.mp4", "/v/sub/b.mp4", "/w/a.mp4"]
    assert files(patterns=["a.mp4"]) == ["/v/a.mp4"]  # from the indexed folder on
    assert files(patterns=["sub/*", "/w/*"]) == ["/v/sub/b.mp4", "/w/a.mp4"]
    assert files(patterns=["*b.mp4"]) == ["/v/sub/b.mp4"]
    assert files(after=at[1]) == ["/v/sub/b.mp4", "/w/a.mp4"]
    assert files(after=at[1], before=at[2]) == ["/v/sub/b.mp4"]
    assert files(before=at[0]) == []


def test_roots_do_not_overlap(store):
    for path in ("/v/sub", "/v/sub/deep", "/vv"):
        store.add_root(path, False)
    assert [root.path for root in store.roots()] == ["/v/sub", "/vv"]
    store.add_root("/v", True)
    assert store.roots() == [("/v", True), ("/vv", False)]
    store.remove_roots("/vv")
    assert store.roots() == [("/v", True)]


def test_what_is_removed_leaves_the_disk(store):
    model = store.add_model("k", "stop", {**FACTS, "dimension": 512})
    for number in range(20):
        vectors = np.full((100, 512), number, np.float16)
        store.put(Content(f"/{number}", 1, 1, f"{number}", 1.0), model, [0.0] * 100, [1.0] * 100, vectors)
    store._all("PRAGMA wal_checkpoint(TRUNCATE)")
    before = store.path.stat().st_size
    store.remove(store.files()[:15])
    store._all("PRAGMA wal_checkpoint(TRUNCATE)")
    assert before > 2e6
    assert store.path.stat().st_size < 0.4 * before


def test_check_sees_damage(store):
    model = store.add_model("k", "stop", FACTS)
    for path in ("/a", "/b", "/c"):
        put(store, model, path)
    store._all("UPDATE vectors SET vectors = zeroblob(24) WHERE file = 1")
    store._all("UPDATE vectors SET vectors = zeroblob(23) WHERE file = 2")
    assert [problem[:4] for problem in store.check()] == ["'/a'", "'/b'"]


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        ("UPDATE vectors SET vectors = x'00' WHERE file = 1", "vectors or times have a wrong size"),
        ("UPDATE vectors SET starts = x'00' WHERE file = 1", "vectors or times have a wrong size"),
        ("UPDATE vectors SET count = 5 WHERE file = 1", "vectors or times have a wrong size"),
        ("UPDATE models SET facts = '{}'", "what it says of its models"),
        ("UPDATE models SET facts = 'nothing'", "what it says of its models"),
        ("UPDATE models SET facts = '[1]'", "what it says of its models"),
        ("DROP TABLE roots", "no such table: roots"),
    ],
)
def test_damage_gets_one_sentence(store, damage, part):
    model = store.add_model("k", "stop", FACTS)
    put(store, model, "/a")
    store._all(damage)
    with pytest.raises(ValueError, match=rf"index\.sqlite: is damaged.*{part}.*: (run verify|restore a copy)"):
        store.roots(), store.models(), store.matrix(model), store.windows(model, [PER_FILE])
    if "vectors = " in damage or "count" in damage:
        with pytest.raises(ValueError, match="is damaged"):
            store.vector(model, PER_FILE)


@pytest.mark.parametrize(
    ("prepare", "part"),
    [
        (lambda path: path.write_bytes(b"no database at all" * 100), "is damaged or no index"),
        (lambda path: sqlite3.connect(path).execute("CREATE TABLE t(x)").connection.close(), "not an index"),
    ],
)
@pytest.mark.parametrize("write", [True, False])
def test_another_file_is_refused(tmp_path, prepare, part, write):
    prepare(tmp_path / NAME)
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(ValueError, match=part):
        Store(tmp_path, write)
    assert (tmp_path / NAME).read_bytes() == before


def test_a_newer_schema_is_refused(store):
    store._all(f"PRAGMA user_version={SCHEMA + 1}")
    for write in (True, False):
        with pytest.raises(ValueError, match=f"schema_version {SCHEMA + 1}.*newer version"):
            Store(store.folder, write)


def test_no_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no index"):
        Store(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_index_is_read_on_a_read_only_disk(tmp_path, monkeypatch):
    with Store(tmp_path, write=True) as store:
        model = store.add_model("k", "stop", FACTS)
        put(store, model, "/a")
    monkeypatch.setattr("search.database.os.access", lambda path, mode: False)
    with Store(tmp_path) as store:
        assert "immutable" in store._address(write=False)
        assert len(store.ids(model)) == 3
        with pytest.raises(OSError, match=r"cannot be used .*readonly"):
            put(store, model, "/b")
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME]


def test_readers_see_whole_files_while_others_write(tmp_path):
    with Store(tmp_path, write=True) as writer, Store(tmp_path, write=True) as other:
        model = writer.add_model("k", "stop", FACTS)
        with Store(tmp_path) as reader:
            for number in range(6):
                put((writer, other)[number % 2], model, f"/{number}")
                assert len(reader.matrix(model)[0]) == 3 * number + 3


def _fill(folder, number):
    with Store(folder, write=True) as store:
        (model,) = store.models()
        for file in range(20):
            put(store, model, f"/{file if file % 2 else 100 * number + file}", 1)


def test_several_processes_write(tmp_path):
    with Store(tmp_path, write=True) as store:
        model = store.add_model("k", "stop", FACTS)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_fill, args=(tmp_path, number)) for number in (1, 2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    with Store(tmp_path) as store:
        paths = [file.path for file in store.files()]
        assert len(paths) == len(set(paths)) == 10 + 3 * 10  # those that all of them wrote are there once
        assert store.totals(model)[:2] == (40, 40)
        assert not store.check()


def _fill_and_die(folder, statements):
    store = Store(folder, write=True)
    (model,) = store.models()
    left = iter(range(statements))
    store._connection.set_trace_callback(
        lambda statement: next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL)
    )
    for number in range(30):
        put(store, model, f"/{number}", key="new")


@pytest.mark.parametrize("statements", [1, 2, 3, 4, 5, 6, 7, 23, 60])
def test_kill_9_leaves_whole_files(tmp_path, statements):
    with Store(tmp_path, write=True) as store:
        model = store.add_model("k", "stop", FACTS)
        for number in range(0, 30, 2):
            put(store, model, f"/{number}", key="old")
    process = multiprocessing.get_context("fork").Process(target=_fill_and_die, args=(tmp_path, statements))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with Store(tmp_path, write=True) as store:
        assert not store.check()
        keys = {file.path: file.content_key for file in store.files()}
        written = [f"/{number}" for number in range(30) if keys.get(f"/{number}") == "new"]
        assert written == [f"/{number}" for number in range(len(written))]
        assert len(store.ids(model)) == 3 * len(keys) == 3 * (15 + sum(int(path[1:]) % 2 for path in written))


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"disk / ext4 rw 0 0\nserver:/x {tmp_path / 'far'} nfs4 rw 0 0\n")
    monkeypatch.setattr("search.database.MOUNTS", mounts)
    with pytest.raises(ValueError, match="network file system"):
        Store(tmp_path / "far" / "index", write=True)
    assert not (tmp_path / "far").exists()
    Store(tmp_path / "near", write=True).close()
