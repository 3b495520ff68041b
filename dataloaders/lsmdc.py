"""LSMDC (Rohrbach et al., IJCV 2017): clips of films with one sentence each, tested on 1,000 of the public test set.

--data_path is a folder with the files that CLIP4Clip and DGL use: `LSMDC16_annos_training.csv`,
`LSMDC16_annos_val.csv` and `LSMDC16_challenge_1000_publictect.csv`. They have no header, and six columns with tabs
between them: the clip's id, four times of which nothing is used here, since a clip is a file of its own, and the
sentence. --features_path is the folder with the videos, `<id>.avi` in one folder a film, or flat.

The sentences of a clip that is listed several times are captions of one video.
"""

from pathlib import Path

from dataloaders.files import check_split, find_videos, read_lines, report_count
from dataloaders.quoting import quoted
from dataloaders.samples import Sample

EXPECTED = {"test": 1000}  # videos
FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
COLUMNS = 6


def read_split(split: str, *, data_path: Path, features_path: Path, **other_flags: Path) -> list[Sample]:
    """The samples of "train", "val" or "test", in the order of the file, one for each clip.

    Raises ValueError for a file with the wrong content and FileNotFoundError for a missing one, the videos aside.
    """
    check_split("LSMDC", split, FILES)
    path = data_path / FILES[split]
    captions: dict[str, list[str]] = {}
    for line in read_lines(path, "--data_path"):
        # Not the csv module: a quotation mark is a part of the sentence here.
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
