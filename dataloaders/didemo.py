"""DiDeMo (Hendricks et al., ICCV 2017) as paragraph-to-video retrieval: all descriptions of a video are one caption.

--data_path is a folder with the files that CLIP4Clip uses: `train_list.txt`, `val_list.txt` and `test_list.txt`, an id
a line, and `train_data.json`, `val_data.json` and `test_data.json`, lists of objects with `video`, `description` and
`times`. --features_path is the folder with the videos. Ids are file names, `....mov`, `....avi`; a video may be called
so, with `.mp4` behind it, or with another extension instead.

A video is its first CLIP_SECONDS, all that was annotated (six chunks of 5 s, and a little); the moments in `times`
are not used.
"""

from pathlib import Path

from dataloaders.files import captions_for, check_split, find_videos, read_json, read_lines, report_count
from dataloaders.json_files import pairs_of
from dataloaders.samples import Sample

EXPECTED = {"train": 8395, "val": 1065, "test": 1004}  # videos
CLIP_SECONDS = 31.0


def read_split(split: str, *, data_path: Path, features_path: Path, **other_flags: Path) -> list[Sample]:
    """The samples of "train", "val" or "test", in the order of the list.

    Raises ValueError for a file with the wrong content and FileNotFoundError for a missing one, the videos aside.
    """
    check_split("DiDeMo", split, EXPECTED)
    list_path, json_path = data_path / f"{split}_list.txt", data_path / f"{split}_data.json"
    video_ids = [video_id.removesuffix(".mp4") for video_id in read_lines(list_path, "--data_path")]
    captions = captions_for(video_ids, read_paragraphs(json_path), list_path, json_path)
    report_count(list_path, len(video_ids), EXPECTED[split])
    paths = find_videos(video_ids, features_path)
    return [
        Sample(video_id, path, captions[video_id], start=0.0, end=CLIP_SECONDS)
        for video_id, path in zip(video_ids, paths, strict=True)
    ]


def read_paragraphs(path: Path) -> dict[str, list[str]]:
    """The one caption of each video: its descriptions in the order of the file, a space between them."""
    moments = pairs_of(
        read_json(path, "--data_path"),
        "video",
        "description",
        f"--data_path {path} is not a list of objects with `video` and `description`",
        'download it again, or write [{"video": "VIDEO_ID.mov", "description": "a dog runs"}, ...]',
    )
    descriptions: dict[str, list[str]] = {}
    for video_id, description in moments:
        descriptions.setdefault(video_id.removesuffix(".mp4"), []).append(description.strip())
    return {video_id: [" ".join(filter(None, texts))] for video_id, texts in descriptions.items()}
