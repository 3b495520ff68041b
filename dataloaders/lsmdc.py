"""LSMDC (Rohrbach et al., IJCV 2017): clips of films with one sentence each, tested on 1,000 of the public test set.

--data_path is a folder with the files that CLIP4Clip and DGL use: `LSMDC16_annos_training.csv`,
`LSMDC16_annos_val.csv` and `LSMDC16_challenge_1000_publictect.csv`. They have no header and six columns separated by
tabs: the clip's id, four times, and the sentence. The times are not used, since every clip is its own file.
--features_path is the folder with the videos, `<id>.avi`, in one folder for each film or all in one.

If a clip is listed several times, its sentences are captions of one video.
"""

from pathlib import Path

from dataloaders.annotations import check_split, read_lines, report_count
from dataloaders.listed_videos import find_videos
from dataloaders.quoting import quoted
from dataloaders.samples import Sample

SPLITS = ("train", "val", "test")
NEEDED_FLAGS = (("data_path", "features_path"), ())
EXPECTED = {"test": 1000}  # videos; of the other two we know no checked count
FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
COLUMNS = 6


def read_split(split: str, *, data_path: Path, features_path: Path, **other_flags: Path) -> list[Sample]:
    """Return the samples of "train", "val" or "test", in the order of the file, one for each clip.

    Raises ValueError for a file with wrong content and FileNotFoundError for a missing file; missing videos are not an
    error here.
    """
    check_split("LSMDC", split, SPLITS)
    path = data_path / FILES[split]
    captions: dict[str, list[str]] = {}
    for line in read_lines(path, "--data_path"):
        # Not the csv module: here a quotation mark is part of the sentence.
        fields = [field.strip() for field in line.split("\t")]
        clip_id, sentence = fields[0], fields[-1]
        if len(fields) != COLUMNS or not clip_id or not sentence:
            raise ValueError(
                f"--data_path {path} has the line {quoted(line)}, which is not an id, four times and a sentence with "
                "tabs between them: download it again."
            )
        captions.setdefault(clip_id, []).append(sentence)
    report_count(path, len(captions), EXPECTED.get(split))
    paths = find_videos(list(captions), features_path, path)
    return [
        Sample(clip_id, video, tuple(texts), listed_in=path)
        for (clip_id, texts), video in zip(captions.items(), paths, strict=True)
    ]
