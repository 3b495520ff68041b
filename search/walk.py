"""Finds the videos of a folder, and what has changed since they were indexed."""

import hashlib
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dataloaders.listed_videos import VIDEO_EXTENSIONS
from dataloaders.quoting import shorten
from search.store import File, is_below

PARTIAL = (".part", ".partial", ".crdownload", ".download", ".opdownload", ".aria2", ".ytdl", ".!qb", ".!ut", ".tmp")
MIB = 1 << 20


class Found(NamedTuple):
    """A video file on disk: its path as `os.fsdecode` gives it, bytes, and modification time."""

    path: str
    size: int
    mtime_ns: int


@dataclass
class Walked:
    """The videos of a folder, in the order of their paths' bytes. `left_out` counts the rest by kind; `unreadable` has
    the folders that cannot be read, and the reason."""

    files: list[Found] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return one line for people: "12 videos; left out: 3 hidden, 1 partial download"."""
        parts = [f"{count} {kind}" for kind, count in sorted(self.left_out.items())]
        parts += [f"{len(self.unreadable)} folders that cannot be read"] if self.unreadable else []
        return f"{len(self.files)} videos" + f"; left out: {', '.join(parts)}" * bool(parts)


def walk(root: str, follow: bool = False, index: str = "") -> Walked:
    """Return the videos in a folder and those below it.

    Files count by their extension. Hidden files and folders, partial downloads, and what is no regular file are left
    out. With `follow`, symbolic links are followed; a file or folder that the walk meets anyway is taken once. The
    folder `index` is never entered.

    Raises:
        FileNotFoundError: there is no such folder.
        NotADirectoryError: it is a file.
    """
    if not os.path.isdir(root):
        kind = NotADirectoryError if os.path.exists(root) else FileNotFoundError
        raise kind(f"{shorten(root, 200)}: is no folder; name the folder with the videos, or mount its disk")
    walked, entered, folders = Walked(), set[tuple[int, int]](), [root]
    if index and os.path.isdir(index):
        status = os.stat(index)
        entered.add((status.st_dev, status.st_ino))
    real = os.path.realpath(root)

    def enter(folder: str) -> None:
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                return
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            walked.unreadable[folder] = error.strerror or str(error)
            return
        for entry in entries:
            try:
                look_at(entry)
            except OSError:  # a link that leads nowhere, or a file that has just gone
                walked.left_out["missing"] += 1

    def look_at(entry: "os.DirEntry[str]") -> None:
        is_video = entry.name.lower().endswith(VIDEO_EXTENSIONS)
        if entry.name.startswith("."):
            if is_video or entry.is_dir(follow_symlinks=False):
                walked.left_out["hidden"] += 1
        elif entry.is_symlink() and not follow:
            if is_video or entry.is_dir():
                walked.left_out["symbolic links (--follow)"] += 1
        elif entry.is_symlink() and is_below(os.path.realpath(entry.path), real):
            pass  # met at its own place
        elif entry.is_dir():
            folders.append(entry.path)
        elif entry.name.lower().endswith(PARTIAL):
            walked.left_out["partial downloads"] += 1
        elif is_video:
            take(entry)

    def take(entry: "os.DirEntry[str]") -> None:
        status = entry.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device would never end
            walked.left_out["not regular files"] += 1
        else:
            walked.files.append(Found(entry.path, status.st_size, status.st_mtime_ns))

    while folders:
        enter(folders.pop())
    if root in walked.unreadable:
        raise PermissionError(f"{shorten(root, 200)}: cannot be read ({walked.unreadable[root]})")
    walked.files.sort(key=lambda file: os.fsencode(file.path))
    return walked


def content_key(path: str) -> str:
    """Return the sha256 of a file's size and its first, middle and last MiB, which tells files apart without reading
    all of a long one. Raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(str(size).encode())
        for start in (0,) if size <= MIB else (0, (size - MIB) // 2, size - MIB):
            file.seek(start)
            digest.update(file.read(MIB))
    return digest.hexdigest()


@dataclass
class Changes:
    """What differs between a folder and the index. `moved` has a file of the index with its new place. `to_read` are
    the files on disk that are new or may have changed, and the file of the index at their place."""

    moved: list[tuple[File, Found]] = field(default_factory=list)
    gone: list[File] = field(default_factory=list)
    to_read: list[tuple[Found, File | None]] = field(default_factory=list)
    unchanged: list[tuple[Found, File]] = field(default_factory=list)


def compare(walked: Walked, known: Sequence[File], key_of: Callable[[str], str] = content_key) -> Changes:
    """Compare a folder with the files of the index in it.

    A file with the same path, size and modification time is unchanged. One that is elsewhere now is found by its size
    and then by its content. Files in folders that cannot be read at present count as unchanged.
    """
    changes, at = Changes(), {file.path: file for file in known}
    on_disk = {found.path for found in walked.files}
    missing: defaultdict[int, list[File]] = defaultdict(list)
    for file in known:
        if file.path not in on_disk and not any(is_below(file.path, folder) for folder in walked.unreadable):
            missing[file.size].append(file)
    for found in walked.files:
        there = at.get(found.path)
        if there is not None and (there.size, there.mtime_ns) == found[1:]:
            changes.unchanged.append((found, there))
        elif old := _take_moved(found, missing, key_of):
            changes.moved.append((old, found))
        else:
            changes.to_read.append((found, there))
    changes.gone = [file for files in missing.values() for file in files]
    return changes


def _take_moved(found: Found, missing: Mapping[int, list[File]], key_of: Callable[[str], str]) -> File | None:
    """Return the missing file whose content is that of a found one, and take it out of `missing`; None without one."""
    candidates = missing.get(found.size, [])
    if not candidates:
        return None
    try:
        key = key_of(found.path)
    except OSError:  # reading it will say why
        return None
    for file in candidates:
        if file.content_key == key:
            candidates.remove(file)
            return file
    return None


def check_gone(root: str, gone: Sequence[File], known: Iterable[File], yes: bool) -> None:
    """Raise ValueError if more than half of the known files of a folder are gone, unless the user said `yes`: its disk
    is probably not mounted."""
    count = sum(1 for _ in known)
    if 2 * len(gone) > count and not yes:
        raise ValueError(
            f"{len(gone)} of the {count} files indexed in {shorten(root, 200)} are gone, such as "
            f"{shorten(gone[0].path, 200)}: mount their disk, or pass --yes to remove them from the index"
        )
