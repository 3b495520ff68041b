"""WebVid (Bain et al., ICCV 2021) and other lists of ids and captions, for `preprocess/make_shards.py`.

--train_csv is a csv file with a header. WebVid's own has the columns `videoid,contentUrl,duration,page_dir,name`, where
`name` is the caption; only `videoid`, `name` and, if there is one, `page_dir` are used. A list of other origin may have
`video_id` and `caption` instead. --features_path is the folder with the videos, `<page_dir>/<videoid>.mp4` as the usual
downloaders store them, or `<videoid>.mp4` in any folder below it.

Lines with the same id are captions of one video.
"""

from pathlib import Path

from dataloaders.annotations import check_split, columns_of, read_csv, read_text
from dataloaders.listed_videos import VIDEO_EXTENSIONS, find_clips
from dataloaders.quoting import quoted
from dataloaders.samples import Sample

SPLITS = ("train",)
NEEDED_FLAGS = (("features_path",), ("train_csv",))
COLUMNS = (("videoid", "name"), ("video_id", "caption"))  # id and caption


def read_split(split: str, *, features_path: Path, train_csv: Path, **other_flags: Path) -> list[Sample]:
    """Return the samples of "train", in the order of the list, one for each video.

    Raises ValueError for a list with wrong content and FileNotFoundError for a missing file; missing videos are not an
    error here.
    """
    check_split("a list of ids and captions", split, SPLITS)
    where = f"--train_csv {train_csv}"
    header, rows = read_csv(read_text(train_csv, "--train_csv"), where)
    columns = next((pair for pair in COLUMNS if set(pair) <= set(header)), None)
    if columns is None:
        found = columns_of(header) or "nothing"
        raise ValueError(
            f"{where} has no header with `videoid` and `name`, or `video_id` and `caption` (its first line: {found}): "
            "add it; a list of `path` and `caption` takes --datatype custom."
        )
    captions: dict[tuple[str, str], list[str]] = {}
    folders: dict[str, str] = {}  # of each id
    for line, row in rows:
        video_id, caption = row[columns[0]], row[columns[1]]
        if not video_id or not caption:
            lacking = columns[1] if video_id else columns[0]
            raise ValueError(f"{where}, line {line}: {lacking!r} is empty; complete the line, or leave it out.")
        folder = row.get("page_dir", "")
        if folders.setdefault(video_id, folder) != folder:
            raise ValueError(
                f"{where}, line {line}: the video {quoted(video_id)} is in two folders, {quoted(folders[video_id])} "
                f"and {quoted(folder)}; leave one of them out."
            )
        captions.setdefault((folder, video_id), []).append(caption)
    if not captions:
        raise ValueError(f"{where} lists no video: download it again.")
    places = [
        f"{folder}/{video_id}{VIDEO_EXTENSIONS[0]}" if folder else video_id + VIDEO_EXTENSIONS[0]
        for folder, video_id in captions
    ]
    paths = find_clips(places, features_path, train_csv)
    return [
        Sample(video_id, path, tuple(texts), listed_in=train_csv)
        for ((_, video_id), texts), path in zip(captions.items(), paths, strict=True)
    ]
