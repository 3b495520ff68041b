"""Find the videos of a list: a name as a data set lists it -> the file in --features_path.

A listed name is rarely the file's name: ids have no extension, downloads get another one, `.mp4` is added after the old
one, and preprocess/compress_video.py replaces it. This module decides for all data sets which file belongs to a name.
If it could be the wrong file, that is an error and not a guess.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# Extensions that all commands take for a video, in order of preference.
VIDEO_EXTENSIONS = (
    ".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp", ".mts", ".flv",
    ".3g2", ".3gp2", ".3gpp", ".asf", ".divx", ".dv", ".f4v", ".m1v", ".m2t", ".m2ts", ".m2v", ".mj2", ".mod", ".mp4v",
    ".mpe", ".mpv", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod", ".ts", ".vob", ".wtv", ".xvid",
)  # fmt: skip

# Ids of DiDeMo are names of uploaded files, some of which end like this.
NO_EXTENSIONS = (".", ".null")

_KNOWN_EXTENSIONS = frozenset((*VIDEO_EXTENSIONS, *NO_EXTENSIONS))

MAX_NAME_BYTES = 255  # length of a file's or folder's name on the file systems of Linux and macOS

Stems = dict[str, list[tuple[str, Path]]]  # a file's name without extension -> its extension in small letters, its path


def split_extension(name: str) -> tuple[str, str]:
    """Split a video's name into stem and extension, as written; (name, "") if it has no known video extension."""
    stem, extension = os.path.splitext(name)
    return (stem, extension) if extension.lower() in _KNOWN_EXTENSIONS else (name, "")


def walk_files(root: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield all files in a folder and the folders below it, in an order that depends on their names alone.

    Links to folders are followed after the folders themselves. A folder is entered once, however many links lead to it.
    Hidden folders are skipped. `on_error` is called for folders that cannot be read.
    """
    entered: set[tuple[int, int]] = set()

    def is_new(folder: str) -> bool:
        try:
            status = os.stat(folder)
        except OSError as error:
            if on_error:
                on_error(error)
            return False
        identity = status.st_dev, status.st_ino
        if identity in entered:
            return False
        entered.add(identity)
        return True

    roots = [str(root)]
    for top in roots:  # grows while links are found
        if not is_new(top):
            continue
        for folder, folders, names in os.walk(top, onerror=on_error):
            below = sorted(name for name in folders if not name.startswith("."))
            roots += (path for name in below if os.path.islink(path := os.path.join(folder, name)))
            folders[:] = [
                name for name in below if not os.path.islink(path := os.path.join(folder, name)) and is_new(path)
            ]
            yield from (Path(folder, name) for name in sorted(names))


def find_videos(
    video_ids: Sequence[str], features_path: Path, listed_in: Path | None = None, may_lack: str = ""
) -> list[Path]:
    """Return the file of each video, in `features_path` or a folder below it; for a missing video the path where we
    expected it.

    A file's name is the id, with or without one of VIDEO_EXTENSIONS after it. If the id itself ends in an extension,
    the file may have another one instead. Of several files in one folder the first in this order counts. An id with `/`
    says which folder the file is in. A file may lack the prefix `may_lack` of the ids.

    Raises FileNotFoundError if `features_path` is not a folder. Raises ValueError, naming the list `listed_in`, for an
    id that cannot be the name of a file in it, for an id that matches files in several folders, and for two ids that
    lead to one file.
    """
    _check_folder(features_path)
    stems = _by_stem(walk_files(features_path))

    def find(video_id: str) -> Path:
        place = check_name(video_id, listed_in)
        found = _matches(place.name, stems)
        if may_lack and place.name.startswith(may_lack):
            found += _matches(place.name.removeprefix(may_lack), stems)
        if len(place.parts) > 1:
            found = [path for path in found if path.parent == features_path / place.parent]
        found = _one_folder(found, video_id, listed_in)
        return found[0] if found else features_path / _expected(place)

    return _each_for_one([(video_id, find(video_id)) for video_id in video_ids], listed_in)


def find_listed_files(names: Sequence[str], features_path: Path, listed_in: Path | None = None) -> list[Path]:
    """Return the file of each video for a list that gives places within `features_path`; for a missing video the path
    where we expected it.

    A file with another or an additional extension may stand in for the listed one if it lies in the same folder, as in
    `find_videos`. Raises FileNotFoundError and ValueError as `find_videos` does.
    """
    _check_folder(features_path)
    folders: dict[Path, Stems] = {}

    def find(name: str) -> Path:
        place = check_name(name, listed_in)
        path = features_path / place
        if path.is_file():
            return path
        if path.parent not in folders:
            # A missing folder has no files; all missing videos are reported together later.
            names = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
            folders[path.parent] = _by_stem(path.parent / name for name in names)
        found = (path for path in _matches(place.name, folders[path.parent]) if path.is_file())
        return next(found, features_path / _expected(place))

    return _each_for_one([(name, find(name)) for name in names], listed_in)


def find_clips(names: Sequence[str], features_path: Path, listed_in: Path | None = None) -> list[Path]:
    """Return the file of each video for a list that gives places within `features_path`, which may be wrong: a file of
    that name anywhere below it counts too, if the list has that name once; for a missing video the path where we
    expected it.

    Another or an additional extension may stand in, as in `find_videos`. Lists of hundreds of thousands of files take
    seconds. Raises FileNotFoundError and ValueError as `find_videos` does; ValueError also for a folder of frames in
    the place of a video.
    """
    _check_folder(features_path)
    listings: dict[str, _Listing] = {}
    paths: dict[str, Path] = {}
    others: list[tuple[str, _Listing]] = []
    for name in names:
        if not _PLAIN_NAME.fullmatch(name):
            check_name(name, listed_in)
        folder, _, base = name.rpartition("/")
        listing = listings.get(folder) or listings.setdefault(folder, _list_folder(features_path / folder))
        if base in listing.files:
            paths[name] = features_path / name
        else:
            others.append((name, listing))
    beside = [name for name, listing in others if _may_be(name, listing.stems)]
    paths |= _found(find_listed_files, beside, features_path, listed_in)
    if elsewhere := [(name, listing) for name, listing in others if name not in paths]:
        below = {path.name for path in walk_files(features_path)}
        below |= {os.path.splitext(name)[0] for name in below}
        count = Counter(name.rpartition("/")[2] for name in names)
        maybe = [name for name, _ in elsewhere if _may_be(name, below)]
        once = {base: name for name in maybe if count[base := name.rpartition("/")[2]] == 1}
        found = _found(find_videos, list(once), features_path, listed_in)
        paths |= {once[base]: path for base, path in found.items()}
        for name, listing in elsewhere:
            if name in paths:
                continue
            if (base := name.rpartition("/")[2]) in listing.folders:
                raise ValueError(
                    f"{listed_in or 'The list'} names {features_path / name}, a folder of frames, which is not read: "
                    "put a video beside each folder (ffmpeg -framerate 25 -i DIR/img_%05d.jpg -c copy DIR.mkv keeps "
                    "the pictures as they are), or pass --features_path with the videos."
                )
            paths[name] = features_path / (name if split_extension(base)[1] else name + VIDEO_EXTENSIONS[0])
    return _each_for_one([(name, paths[name]) for name in names], listed_in)


class _Listing(NamedTuple):
    """The names of a folder's files, these and their stems, and the names of the folders in it."""

    files: set[str]
    stems: set[str]
    folders: set[str]


def _list_folder(folder: Path) -> _Listing:
    if not folder.is_dir():
        return _Listing(set(), set(), set())  # all missing videos are reported together later
    with os.scandir(folder) as entries:
        is_folder = {entry.name: entry.is_dir() for entry in entries}
    files = {name for name, is_one in is_folder.items() if not is_one}
    return _Listing(files, files | {os.path.splitext(name)[0] for name in files}, is_folder.keys() - files)


# Nearly all names of videos, which `check_name` would accept.
_PLAIN_NAME = re.compile(r"(?:[\w-][\w .,()'+-]{0,60}/){0,4}[\w-][\w .,()'+-]{0,60}", re.ASCII)


def _found(
    find: Callable[..., list[Path]], names: list[str], features_path: Path, listed_in: Path | None
) -> dict[str, Path]:
    """Return the paths that a search finds for names, without the missing ones."""
    paths = find(names, features_path, listed_in) if names else []
    return {name: path for name, path in zip(names, paths, strict=True) if path.is_file()}


def _may_be(name: str, stems: Collection[str]) -> bool:
    """Return whether a file with one of these stems can be the video; if not, `_matches` finds none."""
    if not stems:
        return False
    name = base = name.rpartition("/")[2]
    while name not in stems:
        name, extension = split_extension(name)
        if not extension:
            return os.path.splitext(base)[0] in stems
    return True


def check_name(name: str, listed_in: Path | None = None) -> PurePosixPath:
    """Return a listed name as a relative path; ValueError if it is not one that stays within a folder."""
    place = PurePosixPath(name)
    wrong = None
    if place.is_absolute():
        wrong = "is an absolute path: write it relative to --features_path"
    elif ".." in place.parts:
        wrong = "leads out of --features_path: move the video into it"
    elif "\\" in name:
        wrong = "has a backslash: write / between folder and file"
    elif not place.parts or "\0" in name or not _fits(place):
        wrong = "cannot be the name of a file: correct it"
    if wrong:
        shown = repr(name if len(name) <= 60 else name[:57] + "...")
        raise ValueError(f"{listed_in or 'The list'} names a video {shown}, which {wrong}.")
    return place


def _fits(place: PurePosixPath) -> bool:
    try:
        return all(len(os.fsencode(part)) <= MAX_NAME_BYTES for part in place.parts)
    except UnicodeEncodeError:
        return False


def _check_folder(features_path: Path) -> None:
    if not features_path.is_dir():
        raise FileNotFoundError(f"--features_path {features_path} is not a directory: pass the one with the videos.")


def _by_stem(paths: Iterable[Path]) -> Stems:
    stems: Stems = {}
    for path in paths:
        stem, extension = os.path.splitext(path.name)
        stems.setdefault(stem, []).append((extension.lower(), path))
    return stems


def _matches(name: str, stems: Stems) -> list[Path]:
    """Return the files that may be the video of this name, the preferred one first."""
    listed, found = name, list[Path]()
    while True:
        stem, extension = split_extension(name)
        if extension:
            same = [path for own, path in stems.get(stem, ()) if own == extension.lower()]
            found += sorted(same, key=lambda path: path.name != listed)
        known = [pair for pair in stems.get(name, ()) if pair[0] in VIDEO_EXTENSIONS]
        found += [path for _, path in sorted(known, key=lambda pair: VIDEO_EXTENSIONS.index(pair[0]))]
        if not extension:
            break
        name = stem
    if not found:  # some downloads have no extension at all
        stem, extension = os.path.splitext(listed)
        found = [path for own, path in stems.get(stem, ()) if own == extension.lower()]
    return list(dict.fromkeys(found))


def _expected(place: PurePosixPath) -> PurePosixPath:
    if split_extension(place.name)[1]:
        return place
    return place.with_name(place.name + VIDEO_EXTENSIONS[0])


def _one_folder(found: list[Path], video_id: str, listed_in: Path | None) -> list[Path]:
    """Return the files without broken links; ValueError if they lie in several folders and are not one file."""
    if len(found) < 2:
        return found
    files: dict[tuple[int, int], Path] = {}
    for path in found:
        with suppress(OSError):
            status = path.stat()
            files.setdefault((status.st_dev, status.st_ino), path)
    there = list(files.values()) or found
    if other := next((path for path in there if path.parent != there[0].parent), None):
        raise ValueError(
            f"{there[0]} and {other} could both be the video {video_id} of {listed_in or 'the list'}: keep one of "
            "them, or pass the folder of one as --features_path."
        )
    return there


def _each_for_one(found: Iterable[tuple[str, Path]], listed_in: Path | None) -> list[Path]:
    """Return the paths; ValueError if two names lead to one file."""
    names: dict[Path, str] = {}
    paths = []
    for name, path in found:
        if names.setdefault(path, name) != name and path.is_file():
            raise ValueError(
                f"{listed_in or 'The list'} names the videos {names[path]} and {name}, but {path} is the one file for "
                "both: add the other one, or take it out of the list."
            )
        paths.append(path)
    return paths
