"""MSVD (Chen and Dolan, ACL 2011): about 40 captions a video, all of them asked for in evaluation.

--data_path is a folder with the files that text-video retrieval uses since CLIP4Clip: `train_list.txt`, `val_list.txt`
and `test_list.txt`, an id a line, and the pickle `raw-captions.pkl`, id -> list of captions, each a list of words.
--features_path is the folder with the videos, `<id>.avi` as published.
"""

import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

from dataloaders.files import captions_for, check_split, find_videos, read_lines, report_count
from dataloaders.samples import Sample

EXPECTED = {"train": 1200, "val": 100, "test": 670}  # videos

# All that a pickle of plain containers may ask for by name, in the words of Python 3 and of Python 2.
PLAIN_TYPES: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    **{(m, t.__name__): t for m in ("builtins", "__builtin__") for t in (dict, list, tuple, set, frozenset)},
}


def read_split(split: str, *, data_path: Path, features_path: Path, **other_flags: Path) -> list[Sample]:
    """The samples of "train", "val" or "test", in the order of the list.

    Raises ValueError for a file with the wrong content and FileNotFoundError for a missing one, the videos aside.
    """
    check_split("MSVD", split, EXPECTED)
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
    """Captions by video id, of a pickle written by Python 2 or 3; nothing that it may hold is ever run."""
    if not path.is_file():
        raise FileNotFoundError(f"--data_path {path} is not a file: correct the path, or download it.")
    try:
        with path.open("rb") as file:
            captions = PlainUnpickler(file, encoding="latin1").load()
        return {_text(video_id): [" ".join(map(_text, words)) for words in captions[video_id]] for video_id in captions}
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(
            f"--data_path {path} is not a pickle of captions, lists of words by video id ({error}): download it again."
        ) from error


class PlainUnpickler(pickle.Unpickler):
    """Reads containers, text, bytes and numbers; refuses everything else, which could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN_TYPES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return PLAIN_TYPES[module, name]


def _text(word: str | bytes) -> str:
    return word.decode("utf-8") if isinstance(word, bytes) else str(word)
