"""Something-Something V2 (Goyal et al., ICCV 2017): 193,690 labelled clips of 174 actions with things.

--data_path is the folder with the official `something-something-v2-labels.json`, `-train.json` and `-validation.json`,
or with `labels.json`, `train.json` and `validation.json`. "test" is the validation split: the labels of the test split
are not used by papers. --features_path is the folder with the videos, `<id>.webm`. Instead of the official files,
--train_csv and --val_csv may name lists of mmaction2 (`dataloaders.action_lists`), also `<id> <frames> <label>`.

The class of a video is its `template` without brackets. Its `label` names the things that are seen, and is never read.
"""

from collections.abc import Sequence
from pathlib import Path

from dataloaders.action_classes import (
    Numbering,
    check_fold,
    classes_of,
    first_there,
    list_of,
    named_lists,
    needs,
    numbering,
    numbering_of_lists,
    report_videos,
)
from dataloaders.action_lists import Entry, label_entries, read_list, samples_of
from dataloaders.annotations import check_split, log, pairs_of, read_json
from dataloaders.classes import Classes, by_name, given, normalised, read_labels, subset
from dataloaders.quoting import quoted
from dataloaders.samples import Sample

SPLITS = ("train", "test")
NEEDED_FLAGS = (("features_path",), ())
EXPECTED = {"train": {1: 168_913}, "test": {1: 24_777}}  # videos
N_CLASSES = 174
TEMPLATES = ("{}",)
PREFIX = "something-something-v2-"
FILES = {"train": "train.json", "test": "validation.json", "labels": "labels.json"}

# A mirrored video shows the other class (mmaction2, configs of sthv2).
MIRRORED = (
    ("Pulling something from left to right", "Pulling something from right to left"),
    ("Pushing something from left to right", "Pushing something from right to left"),
    ("Turning the camera left while filming something", "Turning the camera right while filming something"),
)
# A video played backwards shows the other class. Who pulls goes ahead of the thing, who pushes comes behind it: pulling
# to the right becomes pushing to the left. Classes whose reversal is not clearly one class are left out.
REVERSED = (
    ("Approaching something with your camera", "Moving away from something with your camera"),
    ("Burying something in something", "Digging something out of something"),
    ("Closing something", "Opening something"),
    ("Covering something with something", "Uncovering something"),
    ("Folding something", "Unfolding something"),
    ("Moving something and something away from each other", "Moving something and something closer to each other"),
    ("Moving something away from something", "Moving something closer to something"),
    ("Moving something away from the camera", "Moving something towards the camera"),
    ("Moving something down", "Moving something up"),
    ("Pulling something from left to right", "Pushing something from right to left"),
    ("Pulling something from right to left", "Pushing something from left to right"),
    ("Putting something into something", "Taking something out of something"),
    (
        "Putting something similar to other things that are already on the table",
        "Taking one of many similar things on the table",
    ),
    ("Turning the camera downwards while filming something", "Turning the camera upwards while filming something"),
    ("Turning the camera left while filming something", "Turning the camera right while filming something"),
)


def read_classes(
    *,
    data_path: Path | None = None,
    train_csv: Path | None = None,
    val_csv: Path | None = None,
    labels_csv: Path | None = None,
    **other_flags: Path | None,
) -> Classes:
    """Return the classes of the official labels, or of --labels_csv, which may leave some out.

    Without --data_path the classes are those of --labels_csv, or else the folders that the lists name. Raises
    FileNotFoundError and ValueError.
    """
    found = _numbering(data_path, labels_csv, train_csv, val_csv)
    mirrored, reversed_ = _both_ways(MIRRORED, found.known), _both_ways(REVERSED, found.known)
    return subset(classes_of(found.known, "ssv2", mirrored, reversed_), found.keys)


def read_split(
    split: str,
    *,
    features_path: Path,
    data_path: Path | None = None,
    train_csv: Path | None = None,
    val_csv: Path | None = None,
    labels_csv: Path | None = None,
    fold: int = 1,
) -> list[Sample]:
    """Return the samples of "train" or "test", the official validation split, in the order of the list.

    Raises ValueError for a file with wrong content and FileNotFoundError for a missing file; missing videos are not an
    error here.
    """
    check_split("Something-Something V2", split, SPLITS)
    check_fold("Something-Something V2", fold, EXPECTED[split])
    found = _numbering(data_path, labels_csv, train_csv, val_csv)
    listed_in, flag = list_of(split, train_csv, val_csv)
    if listed_in is None:
        listed_in, flag = _official(needs("ssv2", data_path, f"{PREFIX}labels.json", split), split), "--data_path"
    if listed_in.suffix.lower() == ".json":
        entries, labels = _read_json(listed_in, flag, found)
    else:
        entries = read_list(listed_in, flag)
        labels = label_entries(entries, found.known, f"{flag} {listed_in}", numbered=found.keys, numbered_by=found.by)
    report_videos(listed_in, len(entries), EXPECTED[split], fold, found.known, N_CLASSES)
    return samples_of(entries, labels, features_path, listed_in)


def _official(data_path: Path, kind: str) -> Path:
    names = (f"{PREFIX}{FILES[kind]}", FILES[kind], f"labels/{FILES[kind]}")
    return first_there(data_path, names)


def _numbering(
    data_path: Path | None, labels_csv: Path | None, train_csv: Path | None, val_csv: Path | None
) -> Numbering:
    if data_path is not None and given(data_path):
        return numbering(read_labels(_official(data_path, "labels"), "--data_path"), labels_csv)
    if not given(labels_csv) and any(path.suffix.lower() == ".json" for path, _ in named_lists(train_csv, val_csv)):
        raise ValueError(
            f"ssv2 needs the classes beside official lists: pass --data_path or --labels_csv with {PREFIX}labels.json."
        )
    return numbering_of_lists("ssv2", f"{PREFIX}labels.json", labels_csv, train_csv, val_csv)


def _read_json(path: Path, flag: str, found: Numbering) -> tuple[Sequence[Entry], list[str]]:
    """Return the videos of an official file and their classes."""
    content = read_json(path, flag)
    fault = f"{flag} {path} is not a list of objects with `id` and `template`"
    pairs = pairs_of(content, "id", "template", fault, f"pass {PREFIX}train.json or {PREFIX}validation.json")
    known = by_name(found.known, "The data set")
    label_of: dict[str, str] = {}
    for video_id, template in pairs:
        key = known.get(normalised(template))
        if key is None or key not in found.keys:
            lacking = found.by or f"{PREFIX}labels.json"
            raise ValueError(
                f"{flag} {path}: {lacking} has no class {quoted(template)} of video {video_id}: correct it."
            )
        if label_of.setdefault(video_id, key) != key:
            raise ValueError(f"{flag} {path} has the video {video_id} with two templates: leave one of them out.")
    if not label_of:
        raise ValueError(f"{flag} {path} lists no video: download it again.")
    if repeated := len(pairs) - len(label_of):
        log.info("attention: %s repeats %d of its videos, which count once", path, repeated)
    return [Entry(f"{video_id}.webm", None, None, 0) for video_id in label_of], list(label_of.values())


def _both_ways(pairs: Sequence[tuple[str, str]], keys: Sequence[str]) -> dict[str, str]:
    """Return the pairs among the keys, in both directions."""
    known = by_name(keys, "The data set")
    found = [(known.get(normalised(one)), known.get(normalised(other))) for one, other in pairs]
    return {a: b for one, other in found if one and other for a, b in ((one, other), (other, one))}
