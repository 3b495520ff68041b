"""MSR-VTT's own split, called "full" to tell it from 1k-A: 20 captions for every test video, each of them a query.

--data_path is `MSRVTT_data.json`; the `split` of each of its `videos` is train, validate or test. --features_path is
the folder with the videos. There are no csv files. MSRVTT_train.7k.csv lists the 7,010 videos of train and validate
together.
"""

from collections import Counter
from pathlib import Path

from dataloaders.annotations import captions_for, check_split, report_count
from dataloaders.listed_videos import find_videos
from dataloaders.msrvtt import by_video, read_objects, read_sentences
from dataloaders.quoting import quoted, shorten
from dataloaders.samples import Sample

SPLITS = ("train", "val", "test")
NEEDED_FLAGS = (("data_path", "features_path"), ())
EXPECTED = {"train": 6513, "val": 497, "test": 2990}  # videos
IN_THE_FILE = {"train": "train", "val": "validate", "test": "test"}


def read_split(split: str, *, data_path: Path, features_path: Path, **other_flags: Path) -> list[Sample]:
    """Return the samples of "train", "val" or "test", in the order of the file.

    Raises ValueError for a file with wrong content and FileNotFoundError for a missing file; missing videos are not an
    error here.
    """
    check_split("MSR-VTT (full)", split, SPLITS)
    videos = read_objects(data_path, "videos", "split", "test")
    (most_common, times), *_ = Counter(video_id for video_id, _ in videos).most_common(1) or [("", 0)]
    if times > 1:
        raise ValueError(f"--data_path {data_path} has {shorten(most_common)} {times} times in `videos`: leave one.")
    if unknown := [name for _, name in videos if name not in IN_THE_FILE.values()]:
        raise ValueError(
            f"--data_path {data_path} has a video of the split {quoted(unknown[0])}, not one of "
            f"{', '.join(IN_THE_FILE.values())}: correct it."
        )
    video_ids = [video_id for video_id, name in videos if name == IN_THE_FILE[split]]
    if not video_ids:
        raise ValueError(
            f"--data_path {data_path} has no video of the split {IN_THE_FILE[split]!r}: download it again."
        )
    captions = captions_for(video_ids, by_video(read_sentences(data_path)), data_path, data_path)
    report_count(data_path, len(video_ids), EXPECTED[split])
    paths = find_videos(video_ids, features_path, data_path)
    return [
        Sample(video_id, path, captions[video_id], listed_in=data_path)
        for video_id, path in zip(video_ids, paths, strict=True)
    ]
