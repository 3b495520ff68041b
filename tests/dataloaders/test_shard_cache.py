"""Shards from a server: whatever it does, the bytes that are read are those of the index, and the cache stays small."""

import fcntl
import os
import threading
import time
from contextlib import ExitStack

import pytest

from dataloaders import shard_cache, shard_download
from dataloaders.shard_cache import CachedShards
from dataloaders.shard_download import Source, fetch_index, is_remote
from tests.dataloaders.folders import assert_one_sentence
from tests.processes import run_as_group
from tests.shard_server import serving
from tests.small_shards import write_shards

N = 6  # shards, each of SIZE bytes
SIZE = 10_240
FLAG = "--train_shards"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(shard_download, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(shard_cache, "RETRY", 0.01)
    monkeypatch.setenv("NETRC", "/dev/null")
    monkeypatch.delenv(shard_download.AUTHORIZATION, raising=False)


@pytest.fixture
def server(tmp_path):
    samples = [(f"k{number}", {"mp4": bytes([number]) * 3000, "txt": b"a"}) for number in range(N)]
    write_shards(tmp_path / "shards", samples, [1] * N)
    with serving(tmp_path / "shards") as running:
        yield running


def store_of(server, folder, room=N, patience=5.0) -> CachedShards:
    source = Source(server.address, FLAG)
    store = CachedShards(source, fetch_index(source, 1), folder / "cache", "some", room * SIZE, patience)
    store.check(1, 1)
    return store


def content(store, shard):
    with store.opened(shard) as path:
        return path.read_bytes()


def here(store):
    return {path.name for path in store.path(0).parent.glob("*.tar")}


def original(server, shard):
    return (server.folder / f"{shard:06d}.tar").read_bytes()


def until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it never came")


@pytest.mark.parametrize(
    "faults",
    [
        [], ["500"], ["404", "503", "429"], ["wrong"], ["cut"], ["cut", "plain"], ["half", "half"], ["long"],
        ["cut", "cut", "500", "cut"], ["cut", "416", "wrong"],
    ],
    ids="-".join,
)  # fmt: skip
def test_no_answer_changes_what_is_read(server, tmp_path, faults):
    store = store_of(server, tmp_path)
    server.faults["000003.tar"] += faults
    assert content(store, 3) == original(server, 3)
    assert not server.faults["000003.tar"]
    assert store.fetched() == (1, SIZE)
    assert content(store, 3) == original(server, 3)
    assert store.fetched() == (1, SIZE)


def test_a_broken_off_download_goes_on_where_it_was(server, tmp_path):
    store = store_of(server, tmp_path)
    server.faults["000001.tar"] += ["cut"]
    content(store, 1)
    assert [wanted for name, wanted, _ in server.asked if name == "000001.tar"] == [None, f"bytes={SIZE // 2}-"]


def test_a_server_that_dies_and_comes_back(server, tmp_path):
    store = store_of(server, tmp_path)
    server.stop()
    timer = threading.Timer(0.3, server.start)
    timer.start()
    assert content(store, 0) == original(server, 0)
    timer.join()


@pytest.mark.parametrize("faults", [["500"] * 999, ["wrong"] * 999, ["half"] * 999])
def test_patience_ends(server, tmp_path, faults):
    """Check that half an answer again and again is no progress."""
    store = store_of(server, tmp_path, patience=0.2)
    server.faults["000002.tar"] += faults
    assert_one_sentence(
        lambda: content(store, 2), OSError, f"{server.address}/000002.tar could not be downloaded (", "tried for 0.2 s"
    )


def test_the_reason_reaches_those_who_waited(server, tmp_path):
    """Check that a second reader does not try for as long again."""
    store = store_of(server, tmp_path, patience=0.6)
    server.faults["000002.tar"] += ["500"] * 999
    messages = []

    def read():
        try:
            content(store, 2)
        except OSError as error:
            messages.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(3)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(messages) == 3
    assert len(set(messages)) == 1
    assert "500" in messages[0]
    assert time.monotonic() - began < 1.5


def test_the_least_recently_used_make_room(server, tmp_path):
    store = store_of(server, tmp_path, room=3)
    for shard in (0, 1, 2, 0, 3):
        content(store, shard)
        assert len(here(store)) <= 3
        time.sleep(0.01)
    assert here(store) == {"000000.tar", "000002.tar", "000003.tar"}
    assert not list(store.root.rglob("*.part"))


def test_files_of_others_in_the_folder_stay(server, tmp_path):
    others = [tmp_path / "cache" / name for name in ("mine.tar", "data/old.tar", "mine.tar.part", "a.tar.gz")]
    for file in others:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(2 * SIZE))
        os.utime(file, (0, 0))
    store = store_of(server, tmp_path, room=3)
    for shard in (0, 1, 2, 3):
        content(store, shard)
        time.sleep(0.01)
    assert all(file.exists() for file in others)
    assert here(store) == {"000001.tar", "000002.tar", "000003.tar"}


def test_a_shard_in_use_stays(server, tmp_path):
    store = store_of(server, tmp_path, room=3)
    with ExitStack() as stack:
        paths = [stack.enter_context(store.opened(shard)) for shard in (0, 1, 2)]
        store.get(3, wait=False)
        assert here(store) == {path.name for path in paths}
        full = store_of(server, tmp_path, room=3, patience=0.1)
        assert_one_sentence(lambda: content(full, 3), OSError, "--shard_cache", "full of shards in use")
    assert content(store, 3) == original(server, 3)


def test_shards_are_downloaded_ahead_and_held(server, tmp_path):
    store = store_of(server, tmp_path, room=3)
    ahead = store.read_ahead()
    ahead([0, 1, 2])
    until(lambda: sorted(ahead.held) == [0, 1, 2])
    store.get(3, wait=False)  # no room
    assert here(store) == {"000000.tar", "000001.tar", "000002.tar"}
    ahead([2, 4])
    until(lambda: sorted(ahead.held) == [2, 4])
    assert {"000002.tar", "000004.tar"} < here(store)
    ahead([])
    content(store, 5)
    assert len(here(store)) == 3


def test_reading_ahead_survives_failures(server, tmp_path):
    store = store_of(server, tmp_path, patience=0.05)
    server.faults["000000.tar"] += ["500"] * 20
    ahead = store.read_ahead()
    ahead([0, 1])
    until(lambda: sorted(ahead.held) == [0, 1])
    ahead([])


def test_what_a_killed_download_left_is_used(server, tmp_path):
    store = store_of(server, tmp_path)
    part = store.path(4).with_name(f"000004.tar.{SIZE}.part")
    part.parent.mkdir()
    part.write_bytes(original(server, 4)[:1000])
    assert content(store, 4) == original(server, 4)
    assert ("000004.tar", "bytes=1000-", None) in server.asked


def read_all(store, order):
    rank = int(os.environ["RANK"])
    for shard in order[::-1] if rank else order:
        assert len(content(store, shard)) == SIZE


def test_two_processes_share_a_cache(server, tmp_path):
    """Check that they download every shard once if there is room, and never take more room than there is."""
    store = store_of(server, tmp_path)
    run_as_group(2, read_all, store, list(range(N)))
    assert sorted(name for name, *_ in server.asked if name != "shards.json") == [f"{n:06d}.tar" for n in range(N)]
    assert store.fetched() == (N, N * SIZE)
    small = store_of(server, tmp_path / "small", room=3)
    run_as_group(2, read_all, small, list(range(N)) * 3)
    assert len(here(small)) <= 3


def test_a_cache_that_is_too_small(server, tmp_path):
    source = Source(server.address, FLAG)
    store = CachedShards(source, fetch_index(source, 1), tmp_path / "cache", "some", 4 * SIZE, 1.0)
    store.check(1, 2)  # 2 shards for the samples, one more for the place of their window, the next one
    assert_one_sentence(lambda: store.check(2, 2), ValueError, "--shard_cache_gb", "6 shards")
    (tmp_path / "file").write_text("")
    store = CachedShards(source, store.index, tmp_path / "file", "some", 4 * SIZE, 1.0)
    assert_one_sentence(lambda: store.check(1, 1), OSError, "--shard_cache", "cannot be used")


def test_a_folder_without_locks(server, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    store = store_of(server, tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert_one_sentence(lambda: store.check(1, 1), OSError, "--shard_cache", "Function not implemented")


def test_the_index_of_a_server(server):
    server.faults["shards.json"] += ["500", "cut"]
    assert len(fetch_index(Source(server.address + "/", FLAG), 5).shards) == N
    nowhere = Source(server.address + "/elsewhere", FLAG)
    assert_one_sentence(lambda: fetch_index(nowhere, 99), OSError, "/elsewhere/shards.json could not", "404")
    (server.folder / "shards.json").write_bytes(b"\xff\xfe")
    assert_one_sentence(lambda: fetch_index(Source(server.address, FLAG), 5), ValueError, "shards.json", "UTF-8")
    server.stop()
    assert_one_sentence(lambda: fetch_index(Source(server.address, FLAG), 0.1), OSError, "shards.json", "0.1 s")
    server.start()


@pytest.mark.parametrize(
    "address",
    ["http://ann:secret@host/x", "https://secret@host/x", "https://host/x?sig=secret", "https://host/x#secret"],
)
def test_secrets_in_an_address_are_refused_and_not_repeated(address):
    with pytest.raises(ValueError, match=r"host holds a name, a password or a query") as caught:
        Source(address, FLAG)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["s3://bucket/x", "http://", "file:///etc"])
def test_other_addresses(address):
    assert is_remote(address)
    assert_one_sentence(lambda: Source(address, FLAG), ValueError, FLAG, "http://")


@pytest.mark.parametrize(
    "address", ["http://h:secret/x", "http://h:99999/x", "http://[::1/x", "http://h/a secret", "http://h/\n"]
)
def test_addresses_that_no_server_has(address):
    with pytest.raises(ValueError, match=rf"^{FLAG}: the address has [^\n]*: [^\n]*\.$") as caught:
        Source(address, FLAG)
    assert "secret" not in str(caught.value)


def test_a_redirection_to_nowhere(server):
    server.faults["shards.json"] += ["302"] * 99
    assert_one_sentence(lambda: fetch_index(Source(server.address, FLAG), 99), OSError, "shards.json could not", "302")


def test_a_token_that_no_header_can_hold(server, monkeypatch):
    for secret in ("Bearer a\nsecret", "Bearer \u4e2dsecret"):
        monkeypatch.setenv(shard_download.AUTHORIZATION, secret)
        with pytest.raises(ValueError, match=f"^{shard_download.AUTHORIZATION} has") as caught:
            fetch_index(Source(server.address, FLAG), 1)
        assert "secret" not in str(caught.value)
    monkeypatch.setenv(shard_download.AUTHORIZATION, "Bearer token\n")
    fetch_index(Source(server.address, FLAG), 1)
    assert server.asked[-1][-1] == "Bearer token"


def test_passwords_come_from_netrc_or_the_environment(server, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ann password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    fetch_index(Source(server.address, FLAG), 1)
    monkeypatch.setenv(shard_download.AUTHORIZATION, "Bearer token")
    fetch_index(Source(server.address, FLAG), 1)
    assert [secret for *_, secret in server.asked[-2:]] == ["Basic YW5uOnNlY3JldA==", "Bearer token"]


def test_a_shell_only_when_it_is_allowed(server, tmp_path):
    address = f"pipe:cat {server.folder}/{{}}"
    assert_one_sentence(lambda: Source(address, FLAG), ValueError, "--allow_pipe")
    assert_one_sentence(lambda: Source("pipe:cat x", FLAG, True), ValueError, "{}")
    source = Source(address, FLAG, True)
    store = CachedShards(source, fetch_index(source, 1), tmp_path / "cache", "some", N * SIZE, 0.1)
    assert content(store, 1) == original(server, 1)
    (server.folder / "000002.tar").unlink()
    assert_one_sentence(lambda: content(store, 2), OSError, "pipe:cat ... 000002.tar", "exit code 1")
