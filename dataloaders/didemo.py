"""DiDeMo (Hendricks et al., ICCV 2017) as paragraph-to-video retrieval: all descriptions of a video are one caption.

--data_path is a folder with the files that CLIP4Clip uses: `train_list.txt`, `val_list.txt` and `test_list.txt`, one id
a line, and `train_data.json`, `val_data.json` and `test_data.json`, lists of objects with `video`, `description` and
`times`. --features_path is the folder with the videos. Ids are names of uploaded files, `....mov`, `....avi`, some with
a bare `.` or `.null` at the end. A video may have that name, `.mp4` after it, or another extension instead.

A video is its first CLIP_SECONDS, which covers all that was annotated (six chunks of 5 s); the moments in `times` are
not used.
"""

from pathlib import Path

from dataloaders.annotations import captions_for, check_split, pairs_of, read_json, read_lines, report_count
from dataloaders.listed_videos import find_videos
from dataloaders.samples import Sample

SPLITS = ("train", "val", "test")
NEEDED_FLAGS = (("data_path", "features_path"), ())
EXPECTED = {"train": 8392, "val": 1065, "test": 1004}  # videos
CLIP_SECONDS = 31.0


def read_split(split: str, *, data_path: Path, features_path: Path, **other_flags: Path) -> list[Sample]:
    """Return the samples of "train", "val" or "test", in the order of the list.

    Raises ValueError for a file with wrong content and FileNotFoundError for a missing file; missing videos are not an
    error here.
    """
    check_split("DiDeMo", split, SPLITS)
    list_path, json_path = data_path / f"{split}_list.txt", data_path / f"{split}_data.json"
    names = {_without_mp4(name): name for name in read_lines(list_path, "--data_path")}
    video_ids = list(names)
    captions = captions_for(video_ids, read_paragraphs(json_path), list_path, json_path)
    report_count(list_path, len(video_ids), EXPECTED[split])
    paths = find_videos(list(names.values()), features_path, list_path)
    return [
        Sample(video_id, path, captions[video_id], start=0.0, end=CLIP_SECONDS, listed_in=list_path)
        for video_id, path in zip(video_ids, paths, strict=True)
    ]


def _without_mp4(name: str) -> str:
    """Return the id of a listed name; some lists put `.mp4` after ids, even after those that end in it."""
    while name.endswith(".mp4"):
        name = name.removesuffix(".mp4")
    return name


def read_paragraphs(path: Path) -> dict[str, list[str]]:
    """Return one caption for each video: its descriptions in the order of the file, joined by spaces."""
    moments = pairs_of(
        read_json(path, "--data_path"),
        "video",
        "description",
        f"--data_path {path} is not a list of objects with `video` and `description`",
        'download it again, or write [{"video": "VIDEO_ID.mov", "description": "a dog runs"}, ...]',
    )
    descriptions: dict[str, list[str]] = {}
    for video_id, description in moments:
        descriptions.setdefault(_without_mp4(video_id), []).append(description.strip())
    return {video_id: [" ".join(filter(None, texts))] for video_id, texts in descriptions.items()}
