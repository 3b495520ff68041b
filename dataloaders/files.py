"""The files of a data set on disk: lists, json, and where its videos are. What every `read_split` is written with.

Every mistake is one sentence that names the flag, the file, what is wrong and the mend: FileNotFoundError for what is
not there, ValueError for what has the wrong content.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataloaders.json_files import parse_json
from dataloaders.listed_videos import VIDEO_EXTENSIONS as VIDEO_EXTENSIONS
from dataloaders.listed_videos import find_listed_files as find_listed_files
from dataloaders.listed_videos import find_videos as find_videos
from dataloaders.quoting import shorten

log = logging.getLogger("stop")

TEXT_CHUNK = 2**20  # characters that `read_text` looks at together


def check_split(data_set: str, split: str, splits: Collection[str]) -> None:
    """Refuse a split that the data set does not have."""
    if split not in splits:
        raise ValueError(f"{data_set} has no split {shorten(split)!r}: pass {' or '.join(splits)}.")


def read_text(path: Path, flag: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; `flag` is the one that led to it."""
    if not path.is_file():
        raise FileNotFoundError(f"{flag} {path} is not a file: correct the path, or download it.")
    chunks = []  # a video of gigabytes, passed as a list, is refused by its first
    try:
        with path.open(encoding="utf-8-sig") as file:  # spreadsheet programs put a byte order mark first
            while chunk := file.read(TEXT_CHUNK):
                if "\0" in chunk:  # UTF-16 without its mark, or bytes that are no text
                    raise ValueError(
                        f"{flag} {path} is not a text file in UTF-8, it holds NUL characters: download it again."
                    )
                chunks.append(chunk)
    except UnicodeDecodeError as error:
        raise ValueError(f"{flag} {path} is not a text file in UTF-8: download it again.") from error
    return "".join(chunks)


def read_json(path: Path, flag: str, mend: str = "download it again") -> Any:
    """What a json file holds; ValueError if it is not valid, or if one of its entries would be lost."""
    text = read_text(path, flag)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{flag} {path} is {error}: {mend}.") from error


def read_json_object(path: Path, flag: str) -> dict[str, Any]:
    """What a json file holds that must be an object."""
    content = read_json(path, flag)
    if not isinstance(content, dict):
        raise ValueError(f"{flag} {path} is not a JSON object with an entry for each video: download it again.")
    return content


def read_lines(path: Path, flag: str) -> list[str]:
    """The lines of a list, each once, without surrounding or empty space."""
    # Not splitlines(), which also cuts at characters that stand within sentences.
    all_lines = [line.strip() for line in read_text(path, flag).split("\n") if line.strip()]
    lines = list(dict.fromkeys(all_lines))
    if not lines:
        raise ValueError(f"{flag} {path} lists no video: download it again.")
    if repeated := len(all_lines) - len(lines):
        log.info("attention: %s repeats %d of its lines, which count once", path, repeated)
    return lines


def captions_for(
    video_ids: Iterable[str], captions: Mapping[str, Sequence[str]], listed_in: Path, captioned_in: Path
) -> dict[str, tuple[str, ...]]:
    """The captions of each listed video, without surrounding space; ValueError if a video has none.

    Empty captions are left out, and the log says how many.
    """
    stripped = {video_id: [caption.strip() for caption in captions.get(video_id, ())] for video_id in video_ids}
    chosen = {video_id: tuple(filter(None, texts)) for video_id, texts in stripped.items()}
    if without := [video_id for video_id, texts in chosen.items() if not texts]:
        raise ValueError(
            f"--data_path {captioned_in} has no caption for {shorten(without[0])}, the first of {len(without)} such "
            f"videos of {listed_in.name}: pass the file that belongs to this list."
        )
    if empty := sum(texts.count("") for texts in stripped.values()):
        log.info("attention: %s has %d empty captions, which are left out", captioned_in, empty)
    return chosen


def report_count(listed_in: Path, n_videos: int, published: int | None) -> None:
    """Note in the log when a split has another number of videos than the published one."""
    if published is not None and n_videos != published:
        # Not a warning, which the log repeats for every process.
        log.info("attention: %s gives %d videos, the published split has %d", listed_in, n_videos, published)
