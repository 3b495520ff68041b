"""MSR-VTT's own split, called "full" beside 1k-A: 20 captions for every test video, all of them asked for.

--data_path is `MSRVTT_data.json`, whose `videos` say in `split` where they belong (train, validate or test);
--features_path is the folder with the videos. There are no csv files. The 7,010 videos of MSRVTT_train.7k.csv are
train and validate together.
"""

from pathlib import Path

from dataloaders.files import captions_for, check_split, find_videos, read_json, report_count
from dataloaders.msrvtt import read_sentences
from dataloaders.samples import Sample

EXPECTED = {"train": 6513, "val": 497, "test": 2990}  # videos
IN_THE_FILE = {"train": "train", "val": "validate", "test": "test"}


def read_split(split: str, *, data_path: Path, features_path: Path, **other_flags: Path) -> list[Sample]:
    """The samples of "train", "val" or "test", in the order of the file.

    Raises ValueError for a file with the wrong content and FileNotFoundError for a missing one, the videos aside.
    """
    check_split("MSR-VTT (full)", split, EXPECTED)
    try:
        videos = read_json(data_path, "--data_path")["videos"]
        video_ids = [video["video_id"] for video in videos if video["split"] == IN_THE_FILE[split]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"--data_path {data_path} does not hold a list `videos` of objects with `video_id` and `split`: pass "
            "MSRVTT_data.json."
        ) from error
    if not video_ids:
        raise ValueError(
            f"--data_path {data_path} has no video of the split {IN_THE_FILE[split]!r}: download it again."
        )
    texts: dict[str, list[str]] = {}
    for video_id, caption in read_sentences(data_path):
        texts.setdefault(video_id, []).append(caption)
    captions = captions_for(video_ids, texts, data_path, data_path)
    report_count(data_path, len(video_ids), EXPECTED[split])
    paths = find_videos(video_ids, features_path, data_path)
    return [
        Sample(video_id, path, captions[video_id], listed_in=data_path)
        for video_id, path in zip(video_ids, paths, strict=True)
    ]
