"""MSVD (Chen and Dolan, ACL 2011): about 40 captions a video, each of them a query in evaluation.

--data_path is a folder with the files that text-video retrieval uses since CLIP4Clip: `train_list.txt`, `val_list.txt`
and `test_list.txt`, one id a line, and the pickle `raw-captions.pkl`, id -> list of captions, each a list of words.
--features_path is the folder with the videos, `<id>.avi` as published.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from dataloaders.annotations import captions_for, check_split, is_text, read_lines, report_count
from dataloaders.listed_videos import find_videos
from dataloaders.plain_pickle import load_plain
from dataloaders.quoting import quoted, shorten
from dataloaders.samples import Sample

SPLITS = ("train", "val", "test")
NEEDED_FLAGS = (("data_path", "features_path"), ())
EXPECTED = {"train": 1200, "val": 100, "test": 670}  # videos

# The published pickle has about 5 MB, its captions 3.5 million characters.
MOST_BYTES = 64 * 2**20
MOST_CHARACTERS = 64 * 2**20


def read_split(split: str, *, data_path: Path, features_path: Path, **other_flags: Path) -> list[Sample]:
    """Return the samples of "train", "val" or "test", in the order of the list.

    Raises ValueError for a file with wrong content and FileNotFoundError for a missing file; missing videos are not an
    error here.
    """
    check_split("MSVD", split, SPLITS)
    list_path, pickle_path = data_path / f"{split}_list.txt", data_path / "raw-captions.pkl"
    video_ids = read_lines(list_path, "--data_path")
    captions = captions_for(video_ids, read_captions(pickle_path), list_path, pickle_path)
    report_count(list_path, len(video_ids), EXPECTED[split])
    paths = find_videos(video_ids, features_path, list_path)
    return [
        Sample(video_id, path, captions[video_id], listed_in=list_path)
        for video_id, path in zip(video_ids, paths, strict=True)
    ]


def read_captions(path: Path) -> dict[str, list[str]]:
    """Read captions by video id from a pickle that Python 2 or 3 wrote; nothing in it is ever run.

    Raises FileNotFoundError, or ValueError for anything but a dictionary of lists of lists of words.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--data_path {path} is not a file: correct the path, or download it.")
    stat = path.stat()
    if stat.st_size > MOST_BYTES:
        raise ValueError(f"--data_path {path} has more than {MOST_BYTES:,} bytes: download it again.")
    return _read(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)  # it takes seconds to read and holds every split
def _read(path: Path, *version: int) -> dict[str, list[str]]:
    try:
        return dict(_captions(load_plain(path.read_bytes())))
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(
            f"--data_path {path} is not a pickle of captions, lists of words by video id ({shorten(str(error), 160)}): "
            "download it again, or write {'VIDEO_ID': [['a', 'dog', 'runs'], ['a', 'brown', 'dog']], ...}."
        ) from error


def _captions(content: Any) -> Iterator[tuple[str, list[str]]]:
    if not isinstance(content, dict):
        raise ValueError(f"it holds {quoted(content)}")
    characters = 0
    for key, listed in content.items():
        video_id, texts = _text(key), []
        if not isinstance(listed, list | tuple):
            raise ValueError(f"{shorten(video_id)} has {quoted(listed)}")
        for words in listed:
            # A string is a sequence of letters, and would be read as one-letter words.
            if not isinstance(words, list | tuple):
                raise ValueError(f"{shorten(video_id)} has the caption {quoted(words)}")
            parts = [word if type(word) is str else _text(word) for word in words]
            # Counted before they are joined: a pickle can store a word once and use it in a million captions.
            characters += 1 + len(parts) + sum(map(len, parts))
            if characters > MOST_CHARACTERS:
                raise ValueError(f"its captions have more than {MOST_CHARACTERS:,} characters")
            texts.append(" ".join(parts))
            if not is_text(texts[-1]):
                raise ValueError(f"{shorten(video_id)} has the caption {quoted(texts[-1])}")
        yield video_id, texts


def _text(word: Any) -> str:
    if not isinstance(word, str | bytes):
        raise ValueError(f"{quoted(word)} is not a word")
    return word.decode("utf-8") if isinstance(word, bytes) else word
