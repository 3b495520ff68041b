"""What the walk finds, and how it differs from the index."""

import hashlib
import os
import subprocess

import pytest

from search.store import File
from search.walk import MIB, Found, Walked, check_gone, compare, content_key, walk


def tree(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def names(walked, folder):
    return [os.path.relpath(file.path, folder) for file in walked.files]


def test_the_walk_is_sorted_and_says_what_it_leaves_out(tmp_path):
    folder = tree(
        tmp_path / "videos", "b.mp4", "B.MKV", "a/z.webm", "a/deep/er/x.avi", "notes.txt", ".hidden.mp4", ".git/x.mp4",
        "c.mp4.part", "d.crdownload", "picture.png", "index/in.mp4",
    )  # fmt: skip
    os.mkfifo(folder / "pipe.mp4")
    (folder / "link.mp4").symlink_to(folder / "b.mp4")
    (folder / "loop").symlink_to(folder)
    walked = walk(str(folder), index=str(folder / "index"))
    assert names(walked, folder) == ["B.MKV", "a/deep/er/x.avi", "a/z.webm", "b.mp4"]
    assert walked.left_out == {
        "hidden": 2, "partial downloads": 2, "not regular files": 1, "symbolic links (--follow)": 2,
    }  # fmt: skip
    assert str(walked).startswith("4 videos; left out: 2 hidden, ")


def test_links_are_followed_once(tmp_path):
    folder, other = tree(tmp_path / "videos", "b.mp4", "sub/c.mp4"), tree(tmp_path / "other", "o.mp4", "deep/p.mp4")
    (folder / "loop").symlink_to(folder)
    (folder / "again.mp4").symlink_to(folder / "b.mp4")
    (folder / "one").symlink_to(other)
    (folder / "two").symlink_to(other)
    (other / "back").symlink_to(other)
    (folder / "away.mp4").symlink_to(tmp_path / "nowhere.mp4")
    walked = walk(str(folder), follow=True)
    found = names(walked, folder)
    assert len(found) == 4
    assert {os.path.basename(name) for name in found} == {"b.mp4", "c.mp4", "o.mp4", "p.mp4"}
    assert walked.left_out == {"missing": 1}


def test_a_deep_tree(tmp_path):
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1100):  # deeper than Python's stack
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    try:
        assert not walk(str(tmp_path)).files
    finally:  # pytest would fail to remove it later, in another run
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        walk(str(tmp_path / "nowhere"))
    with pytest.raises(NotADirectoryError, match="is no folder"):
        walk(str(tree(tmp_path, "a.mp4") / "a.mp4"))


@pytest.mark.parametrize("size", [0, 5, MIB, MIB + 1, 5 * MIB])
def test_the_key_of_content(tmp_path, size):
    data = bytearray(os.urandom(size))
    (tmp_path / "a").write_bytes(data)
    places = [0] if size <= MIB else [0, (size - MIB) // 2, size - MIB]
    read = b"".join(data[place : place + MIB] for place in places)
    assert content_key(str(tmp_path / "a")) == hashlib.sha256(str(size).encode() + read).hexdigest()
    if size:
        for place in (0, size // 2, size - 1):
            data[place] ^= 1
            (tmp_path / "a").write_bytes(data)
            assert content_key(str(tmp_path / "a")) != hashlib.sha256(str(size).encode() + read).hexdigest()
            data[place] ^= 1


def known(id_, path, size=1, mtime=1, key=""):
    return File(id_, path, size, mtime, key or f"key {id_}", 1.0)


def test_changes():
    files = [known(1, "/a"), known(2, "/b"), known(3, "/c"), known(4, "/d"), known(5, "/shut/e"), known(6, "/f")]
    walked = Walked(
        [Found("/a", 1, 1), Found("/b", 1, 2), Found("/new", 1, 7), Found("/other", 1, 8), Found("/f", 1, 9)],
        unreadable={"/shut": "Permission denied"},
    )
    keys = {"/b": "key 2", "/new": "key 3", "/other": "another", "/f": "key 4"}  # d took the place of f
    changes = compare(walked, files, keys.__getitem__)
    assert changes.unchanged == [(Found("/a", 1, 1), files[0])]
    assert changes.moved == [(files[2], Found("/new", 1, 7)), (files[3], Found("/f", 1, 9))]
    assert changes.to_read == [(Found("/b", 1, 2), files[1]), (Found("/other", 1, 8), None)]
    assert changes.gone == []  # what lies in a folder that cannot be read is not gone


def test_files_are_hashed_only_where_one_of_their_size_is_missing():
    hashed = []
    compare(
        Walked([Found("/new", 2, 1), Found("/more", 3, 1)]),
        [known(1, "/gone", size=3)],
        lambda path: hashed.append(path) or "",
    )
    assert hashed == ["/more"]


@pytest.mark.parametrize(("gone", "count", "refused"), [(1, 2, False), (2, 3, True), (1, 1, True), (0, 0, False)])
def test_more_than_half_gone(gone, count, refused):
    files = [known(number, f"/{number}") for number in range(count)]
    if refused:
        with pytest.raises(ValueError, match=rf"{gone} of the {count} files .* --yes"):
            check_gone("/", files[:gone], files, yes=False)
    else:
        check_gone("/", files[:gone], files, yes=False)
    check_gone("/", files[:gone], files, yes=True)
