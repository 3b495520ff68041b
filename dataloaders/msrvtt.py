"""MSR-VTT (Xu et al., CVPR 2016) in the files that text-video retrieval uses since CLIP4Clip.

Training: a csv with the column `video_id`, and the json `MSRVTT_data.json` whose `sentences` hold `video_id` and
`caption`. Test: the csv of the "1k-A" split with the columns `video_id` and `sentence`. Videos:
`<features_path>/<video_id>.mp4`, or with another extension. Any data in these formats is read alike; the published
numbers of videos and captions are in `EXPECTED`.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from dataloaders.files import check_split, find_videos, read_json, read_text, report_count
from dataloaders.samples import Sample

# csv file as published -> (videos, captions)
EXPECTED = {
    "MSRVTT_train.9k.csv": (9000, 180_000),
    "MSRVTT_train.7k.csv": (7010, 140_200),
    "MSRVTT_JSFUSION_test.csv": (1000, 1000),
}


def read_split(split: str, *, data_path: Path, features_path: Path, train_csv: Path, val_csv: Path) -> list[Sample]:
    """The samples of "train" or "test", in the order of the csv, one for each video.

    `data_path` is the json and only read for "train". Raises ValueError for a file with the wrong content and
    FileNotFoundError for a missing file, the videos aside.
    """
    check_split("MSR-VTT", split, ("train", "test"))
    if split == "train":
        csv_path, flag = train_csv, "--train_csv"
        captions = _training_captions(train_csv, data_path)
    else:
        csv_path, flag = val_csv, "--val_csv"
        captions = _test_captions(val_csv)
    if not captions:
        raise ValueError(f"{flag} {csv_path} lists no video: download it again.")

    paths = find_videos(list(captions), features_path, csv_path)
    expected = EXPECTED.get(csv_path.name)
    report_count(csv_path, len(captions), expected[0] if expected else None)
    return [
        Sample(video_id, path, tuple(texts), listed_in=csv_path)
        for (video_id, texts), path in zip(captions.items(), paths, strict=True)
    ]


def _training_captions(train_csv: Path, data_path: Path) -> dict[str, list[str]]:
    rows = _read_csv(train_csv, "--train_csv", columns=("video_id",))
    captions: dict[str, list[str]] = {row["video_id"]: [] for row in rows}
    for video_id, caption in read_sentences(data_path):
        if video_id in captions:
            captions[video_id].append(caption)
    without = [video_id for video_id, texts in captions.items() if not texts]
    if without:
        raise ValueError(
            f"--data_path {data_path} has no caption for {without[0]}, the first of {len(without)} such videos of "
            f"{train_csv.name}: pass the json that belongs to this csv."
        )
    return captions


def _test_captions(val_csv: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for row in _read_csv(val_csv, "--val_csv", columns=("video_id", "sentence")):
        captions.setdefault(row["video_id"], []).append(row["sentence"])
    return captions


def _read_csv(path: Path, flag: str, columns: Sequence[str]) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(read_text(path, flag)))
    header = reader.fieldnames or ()
    for column in columns:
        if column not in header:
            raise ValueError(
                f"{flag} {path} has no column {column!r} (its columns: {', '.join(header) or 'none'}): "
                "pass the csv file of MSR-VTT's split."
            )
    rows = []
    try:
        for row in reader:
            if any(not (row[column] or "").strip() for column in columns):
                missing = " or ".join(columns)
                raise ValueError(f"{flag} {path}, line {reader.line_num}: {missing} is empty; complete the line.")
            rows.append({column: row[column].strip() for column in columns})
    except csv.Error as error:
        raise ValueError(f"{flag} {path}, line {reader.line_num}: {error}; download the file again.") from error
    return rows


def read_sentences(path: Path) -> list[tuple[str, str]]:
    """(video_id, caption) of every sentence of MSRVTT_data.json."""
    mend = "pass MSRVTT_data.json"
    data = read_json(path, "--data_path", mend)
    try:
        return [(str(sentence["video_id"]), str(sentence["caption"])) for sentence in data["sentences"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"--data_path {path} does not hold a list `sentences` of objects with `video_id` and `caption`: {mend}."
        ) from error
