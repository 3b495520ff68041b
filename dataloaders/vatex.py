"""VATEX (Wang et al., ICCV 2019) in English: 10 captions a video, each of them a query in evaluation.

--data_path is a folder with the files that STOP and DGL use: `train_list.txt` and `test_list.txt`, one id a line, and
`ref_captions.json`, id -> list of captions. --features_path is the folder with the videos, `<id>.mp4`.

The split is that of Chen et al. (HGR, CVPR 2020), who halved the published validation split into validation and test.
STOP and DGL use no validation videos; to select on them, put their ids into a third file, `val_list.txt`.
"""

from pathlib import Path

from dataloaders.annotations import captions_for, check_split, is_texts, read_json_object, read_lines, report_count
from dataloaders.listed_videos import find_videos
from dataloaders.quoting import quoted, shorten
from dataloaders.samples import Sample

SPLITS = ("train", "val", "test")
NEEDED_FLAGS = (("data_path", "features_path"), ())
EXPECTED = {"train": 25_991, "val": 1500, "test": 1500}  # videos


def read_split(split: str, *, data_path: Path, features_path: Path, **other_flags: Path) -> list[Sample]:
    """Return the samples of "train", "val" or "test", in the order of the list.

    Raises ValueError for a file with wrong content and FileNotFoundError for a missing file; missing videos are not an
    error here.
    """
    check_split("VATEX", split, SPLITS)
    list_path, json_path = data_path / f"{split}_list.txt", data_path / "ref_captions.json"
    video_ids = read_lines(list_path, "--data_path")
    listed = read_json_object(json_path, "--data_path")
    for video_id, texts in listed.items():
        if not is_texts(texts):
            raise ValueError(
                f"--data_path {json_path}: {shorten(video_id)} has no list of captions but {quoted(texts)}; download "
                'it again, or write {"VIDEO_ID": ["a dog runs", "a brown dog is running"], ...}.'
            )
    captions = captions_for(video_ids, listed, list_path, json_path)
    report_count(list_path, len(video_ids), EXPECTED[split])
    paths = find_videos(video_ids, features_path, list_path)
    return [
        Sample(video_id, path, captions[video_id], listed_in=list_path)
        for video_id, path in zip(video_ids, paths, strict=True)
    ]
