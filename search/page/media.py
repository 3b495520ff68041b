"""From the id of a window to its file, and to the pictures that the page shows of it.

A file is given away only if it lies in a folder that was indexed, and is what it was then.
"""

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from search.index import hit_name
from search.page.children import Children
from search.page.decoding import write_preview, write_thumb
from search.page.kept import CLIPS, MOST_CLIPS, THUMBS, Kept, thumb_name
from search.page.live import LiveIndex
from search.page.questions import readable
from search.store import PER_FILE, File, Root, Window, is_below
from search.walk import content_key

MIME = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".f4v": "video/mp4", ".mp4v": "video/mp4", ".webm": "video/webm",
    ".mov": "video/quicktime", ".qt": "video/quicktime", ".mkv": "video/matroska", ".ogv": "video/ogg",
    ".ogm": "video/ogg", ".3gp": "video/3gpp", ".3gpp": "video/3gpp", ".3g2": "video/3gpp2", ".3gp2": "video/3gpp2",
    ".avi": "video/vnd.avi", ".divx": "video/vnd.avi", ".xvid": "video/vnd.avi", ".mpg": "video/mpeg",
    ".mpeg": "video/mpeg", ".mpe": "video/mpeg", ".mpv": "video/mpeg", ".m1v": "video/mpeg", ".m2v": "video/mpeg",
    ".mod": "video/mpeg", ".tod": "video/mpeg", ".vob": "video/mpeg", ".ts": "video/mp2t", ".mts": "video/mp2t",
    ".m2t": "video/mp2t", ".m2ts": "video/mp2t", ".wmv": "video/x-ms-wmv", ".asf": "video/x-ms-asf",
    ".flv": "video/x-flv", ".mj2": "video/mj2", ".mxf": "application/mxf",
}  # fmt: skip
UNKNOWN = "application/octet-stream"
Writer = Callable[[Path, float, float, Path], None]
REFRESH = "bring the index up to date (python -m search refresh)"


class Refused(Exception):
    """An answer other than 200: a status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass(frozen=True)
class Moment:
    """A window of an index: its id, its file, and where the file's bytes are. `shown` is the file's path as people know
    it, from the indexed folder on, and `status` what the system says about it."""

    window_id: int
    file: File
    window: Window
    path: Path
    status: os.stat_result
    shown: str

    @property
    def milliseconds(self) -> str:
        """Return a name for this moment of its file."""
        return "-".join(str(round(1000 * seconds)) for seconds in self.window[1:])

    @property
    def mime(self) -> str:
        return MIME.get(os.path.splitext(self.file.path)[1].lower(), UNKNOWN)


def parse_id(text: str) -> int:
    """Return the id of a window from "file:number"; Refused (404) for anything else."""
    file, _, number = text.partition(":")
    if all(part.isascii() and part.isdecimal() for part in (file, number)) and len(file) <= 12 and len(number) <= 7:
        return int(file) * PER_FILE + int(number)
    raise Refused(404, "there is no such moment: ids look like 12:3")


def find(index: LiveIndex, text: str) -> Moment:
    """Return the moment with an id; Refused, 404 or 410, if there is none or its file cannot be given away."""
    window_id = parse_id(text)
    try:
        (window,) = index.windows([window_id])
        file = index.store.file(window_id // PER_FILE)
    except KeyError:
        raise Refused(404, f"the index has no moment {hit_name(window_id)}: ask again") from None
    roots = index.store.roots()
    shown = shown_path(roots, file.path)
    return Moment(window_id, file, window, *_checked(roots, file, shown), shown)


def shown_path(roots: Sequence[Root], path: str) -> str:
    """Return a file's path from the indexed folder on, with the folder's name if there are several."""
    for root, _ in roots:
        if is_below(path, root):
            shown = os.path.relpath(path, root)
            return readable(os.path.join(os.path.basename(root), shown) if len(roots) > 1 else shown)
    return readable(os.path.basename(path))


def _checked(roots: Sequence[Root], file: File, shown: str) -> tuple[Path, os.stat_result]:
    """Return where a file's bytes are, and its status; Refused unless they may be given away and are as indexed."""
    root = next((root for root in roots if is_below(file.path, root.path)), None)
    real = os.path.realpath(file.path)
    if root is None or not (root.follow or is_below(real, os.path.realpath(root.path))):
        raise Refused(404, f"{shown}: leads out of the folder that was indexed")
    try:
        status = os.stat(real)
        same = stat.S_ISREG(status.st_mode) and status.st_size == file.size
        if same and status.st_mtime_ns != file.mtime_ns:  # touched, or written to
            same = _key(real, status.st_size, status.st_mtime_ns) == file.content_key
    except OSError as error:
        gone = isinstance(error, FileNotFoundError | NotADirectoryError)
        why = "is gone" if gone else f"cannot be read ({error.strerror})"
        raise Refused(410, f"{shown}: {why}; mount its disk, or {REFRESH}") from None
    if not same:
        raise Refused(410, f"{shown}: has changed since it was indexed; {REFRESH}")
    return Path(real), status


@lru_cache(maxsize=1000)
def _key(path: str, size: int, mtime_ns: int) -> str:
    """Return the content's key of a file that has this size and time of modification."""
    return content_key(path)


class Media:
    """Makes and keeps thumbnails and previews in `folder`."""

    def __init__(self, folder: Path, children: Children, most: int = MOST_CLIPS) -> None:
        self._children = children
        self._thumbs, self._clips = Kept(folder / THUMBS), Kept(folder / CLIPS, most)

    def thumb(self, moment: Moment) -> Path:
        """Return the path of a JPEG of a moment's middle; Refused if it cannot be decoded."""
        return self._make(self._thumbs, thumb_name(moment.file.content_key, moment.milliseconds), moment, write_thumb)

    def preview(self, moment: Moment) -> Path:
        """Return the path of an h264 mp4 of a moment; Refused if it cannot be decoded."""
        return self._make(self._clips, f"{moment.file.content_key}/{moment.milliseconds}.mp4", moment, write_preview)

    def _make(self, kept: Kept, name: str, moment: Moment, write: Writer) -> Path:
        def make(partial: Path) -> None:
            self._children.run(write, moment.path, moment.window.start, moment.window.end, partial)

        try:
            return kept.get(name, make)
        except ValueError as error:
            raise Refused(404, str(error).replace(str(moment.path), moment.shown)) from None
