"""ActivityNet Captions (Krishna et al., ICCV 2017) as paragraph-to-video retrieval, evaluated on "val_1".

--data_path is a folder with the files that CLIP4Clip and STOP use: `train_ids.json` and `val_ids.json`, lists of ids
`v_...`; `train.json` and `val_1.json`, id -> `duration`, `timestamps`, `sentences`. --features_path is the folder with
the videos, named `v_....mp4`, with another extension, or without the `v_`.

An optional `video_path.json` in --data_path, id -> file in --features_path, as STOP has it, says where each video is.
Videos without an entry are left out, so it can select a part of the data set. STOP's authors also leave out
v_NHznDFD3V3k, which is broken, and arrive at 9,933 and 4,869 videos. If an entry says `.avi`, an `.mp4` in the same
folder is found too.

The one caption of a video joins all its sentences; the video is its first ceil(duration) seconds. The published test
split is withheld, so val_1 is the test here, and there is no other validation split.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataloaders.annotations import (
    check_split,
    is_text,
    is_texts,
    log,
    number,
    read_json,
    read_json_object,
    report_count,
)
from dataloaders.listed_videos import find_listed_files, find_videos
from dataloaders.quoting import quoted, shorten
from dataloaders.samples import Sample

SPLITS = ("train", "test")
NEEDED_FLAGS = (("data_path", "features_path"), ())
EXPECTED = {"train": 10_009, "test": 4917}  # videos with a caption, of 10,024 and 4,926 ids
FILES = {"train": ("train_ids.json", "train.json"), "test": ("val_ids.json", "val_1.json")}


def read_split(split: str, *, data_path: Path, features_path: Path, **other_flags: Path) -> list[Sample]:
    """Return the samples of "train" or "test", in the order of the list of ids, without videos that have no caption.

    Raises ValueError for a file with wrong content and FileNotFoundError for a missing file; missing videos are not an
    error here.
    """
    check_split("ActivityNet", split, SPLITS)
    ids_path, captions_path = (data_path / name for name in FILES[split])
    video_ids = read_json(ids_path, "--data_path")
    if not is_texts(video_ids):
        raise ValueError(
            f"--data_path {ids_path} is not a list of ids (but {quoted(video_ids)}): download it again, or write "
            '["v_VIDEO", ...].'
        )
    entries = read_json_object(captions_path, "--data_path")
    captioned = [video_id for video_id in dict.fromkeys(video_ids) if video_id in entries]
    if not captioned:
        raise ValueError(
            f"--data_path {captions_path} has no caption for any video of {ids_path.name}: download both again."
        )
    _note_left_out(len(set(video_ids)) - len(captioned), ids_path, captions_path)

    map_path = data_path / "video_path.json"
    if map_path.is_file():
        files = _by_id(read_json_object(map_path, "--data_path"), captioned)
        for video_id, file in files.items():
            if not is_text(file):
                raise ValueError(
                    f"--data_path {map_path}: {shorten(video_id)} has {quoted(file)} instead of a file name; write "
                    '{"v_VIDEO": "v_VIDEO.mp4", ...}.'
                )
        _note_left_out(len(captioned) - len(files), ids_path, map_path)
        captioned, listed_in = list(files), map_path
        if not captioned:
            raise ValueError(f"--data_path {map_path} has no entry for any video of {ids_path.name}: complete it.")
        paths = find_listed_files(list(files.values()), features_path, map_path)
    else:
        listed_in = ids_path
        paths = find_videos(captioned, features_path, ids_path, may_lack="v_")
    report_count(ids_path, len(captioned), EXPECTED[split])
    return [
        replace(_sample(video_id, path, entries[video_id], captions_path), listed_in=listed_in)
        for video_id, path in zip(captioned, paths, strict=True)
    ]


def _note_left_out(count: int, ids_path: Path, path: Path) -> None:
    if count:
        log.info("attention: %s lists %d videos without an entry in %s, which are left out", ids_path, count, path.name)


def _by_id(files: dict[str, Any], video_ids: list[str]) -> dict[str, Any]:
    """Return the entries of these videos, whether or not the ids in `files` begin with `v_`."""
    keys = {video_id: video_id if video_id in files else video_id.removeprefix("v_") for video_id in video_ids}
    return {video_id: files[key] for video_id, key in keys.items() if key in files}


def _sample(video_id: str, path: Path, entry: Any, captions_path: Path) -> Sample:
    found = entry if isinstance(entry, dict) else {}
    sentences: Any = found.get("sentences")
    duration = number(found.get("duration"))
    if not is_texts(sentences) or duration is None or duration <= 0:
        raise ValueError(
            f"--data_path {captions_path}: {shorten(video_id)} has no `duration` or no list of `sentences` but "
            f'{quoted(entry)}; download it again, or write {{"v_VIDEO": {{"duration": 12.5, "sentences": '
            '["A dog runs."]}, ...}.'
        )
    caption = " ".join(filter(None, (sentence.strip() for sentence in sentences)))
    end = float(math.ceil(duration))
    if not caption:
        raise ValueError(
            f"--data_path {captions_path}: {shorten(video_id)} has only empty sentences; take it out of the list."
        )
    return Sample(video_id, path, (caption,), start=0.0, end=end)
