"""MSR-VTT (Xu et al., CVPR 2016) in the files that text-video retrieval uses since CLIP4Clip.

Training: a csv with the column `video_id`, and the json `MSRVTT_data.json` whose `sentences` hold `video_id` and
`caption`. Test: the csv of the "1k-A" split with the columns `video_id` and `sentence`. Videos:
`<features_path>/<video_id>.mp4`, or with another extension. Other data in these formats is read in the same way.
The published numbers of videos and captions are in `EXPECTED`.

1k-A has no validation split: papers select on the test videos (see `msrvtt_full` for a split with one).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from dataloaders.annotations import (
    Row,
    captions_for,
    check_split,
    columns_of,
    pairs_of,
    read_csv,
    read_json,
    read_text,
    report_count,
)
from dataloaders.listed_videos import find_videos
from dataloaders.samples import Sample

SPLITS = ("train", "test")
NEEDED_FLAGS = (("val_csv", "features_path"), ("train_csv", "data_path"))
# published csv file -> (videos, captions)
EXPECTED = {
    "MSRVTT_train.9k.csv": (9000, 180_000),
    "MSRVTT_train.7k.csv": (7010, 140_200),
    "MSRVTT_JSFUSION_test.csv": (1000, 1000),
}
# The test videos of MSR-VTT's own split, from which 1k-A is drawn. Other data in these formats has other ids.
TEST_NUMBERS = range(7010, 10_000)


def read_split(split: str, *, data_path: Path, features_path: Path, train_csv: Path, val_csv: Path) -> list[Sample]:
    """Return the samples of "train" or "test", in the order of the csv, one for each video.

    `data_path` is the json, read for "train" only. Raises ValueError for a file with wrong content and
    FileNotFoundError for a missing file; missing videos are not an error here.
    """
    check_split("MSR-VTT", split, SPLITS)
    if split == "train":
        csv_path, flag = train_csv, "--train_csv"
        video_ids = list(dict.fromkeys(row["video_id"] for row in _read_csv(train_csv, flag, columns=("video_id",))))
        captions = captions_for(video_ids, by_video(read_sentences(data_path)), train_csv, data_path)
    else:
        csv_path, flag = val_csv, "--val_csv"
        rows = _read_csv(val_csv, flag, columns=("video_id", "sentence"))
        captions = {
            video_id: tuple(texts)
            for video_id, texts in by_video((row["video_id"], row["sentence"]) for row in rows).items()
        }
    if not captions:
        raise ValueError(f"{flag} {csv_path} lists no video: download it again.")

    paths = find_videos(list(captions), features_path, csv_path)
    report_count(csv_path, len(captions), _published_count(csv_path.name, captions))
    return [
        Sample(video_id, path, tuple(texts), listed_in=csv_path)
        for (video_id, texts), path in zip(captions.items(), paths, strict=True)
    ]


def by_video(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group (video_id, caption) pairs, in any order, by video."""
    captions: dict[str, list[str]] = {}
    for video_id, caption in pairs:
        captions.setdefault(video_id, []).append(caption)
    return captions


def _published_count(name: str, video_ids: Iterable[str]) -> int | None:
    """Return how many videos the published list of this name has; None if this is another list of the same name."""
    if name == "MSRVTT_JSFUSION_test.csv" and not any(
        video_id.startswith("video") and video_id[5:].isdecimal() and int(video_id[5:]) in TEST_NUMBERS
        for video_id in video_ids
    ):
        return None
    return EXPECTED[name][0] if name in EXPECTED else None


def _read_csv(path: Path, flag: str, columns: Sequence[str]) -> list[Row]:
    header, lines = read_csv(read_text(path, flag), f"{flag} {path}")
    for column in columns:
        if column not in header:
            raise ValueError(
                f"{flag} {path} has no column {column!r} (its columns: {columns_of(header) or 'none'}): "
                "pass the csv file of MSR-VTT's split."
            )
    rows = []
    for line, row in lines:
        if not all(row[column] for column in columns):
            raise ValueError(f"{flag} {path}, line {line}: {' or '.join(columns)} is empty; complete the line.")
        rows.append(row)
    return rows


def read_sentences(path: Path) -> list[tuple[str, str]]:
    """Return (video_id, caption) of every sentence of MSRVTT_data.json."""
    return read_objects(path, "sentences", "caption", "a dog runs")


def read_objects(path: Path, name: str, field: str, example: str) -> list[tuple[str, str]]:
    """Return (video_id, `field`) of every object in the list `name` of MSRVTT_data.json.

    Raises ValueError for another layout, as `pairs_of` does.
    """
    data = read_json(path, "--data_path", "pass MSRVTT_data.json")
    return pairs_of(
        data.get(name) if isinstance(data, dict) else None,
        "video_id",
        field,
        f"--data_path {path} does not hold a list `{name}` of objects with `video_id` and `{field}`",
        f'pass MSRVTT_data.json, {{"{name}": [{{"video_id": "video0", "{field}": "{example}"}}, ...]}}',
    )
