"""Protocols of action recognition: few shots, parts of the classes, groups held out together, and what must not leak.

All draws depend on their seed alone, not on the order of a list.

Shapes: N samples, K classes.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np

from dataloaders.action_classes import read_keys
from dataloaders.annotations import log
from dataloaders.classes import Classes, subset
from dataloaders.quoting import quoted, shorten, some
from dataloaders.samples import Sample, shared_videos

PARTS = ("all", "base", "novel")  # values of --classes beside half:NUMBER and the path of a file
HALF = re.compile(r"half:(\d{1,9})")


# ---- few shots ------------------------------------------------------------------------------------------------------


def few_shot(samples: Sequence[Sample], shots: int, seed: int, keys: Sequence[str] = ()) -> list[Sample]:
    """Return `shots` samples of each class, in the order of the list.

    What is drawn of a class does not depend on the other classes. Of one seed, fewer shots are a part of more shots.
    (The published lists of ViFi-CLIP are separate draws.) ValueError if a class has fewer samples; `keys` are classes
    that may have none at all.
    """
    of_class: defaultdict[str, list[Sample]] = defaultdict(list, {key: [] for key in keys})
    for sample in samples:
        of_class[sample.label].append(sample)
    if short := sorted(key for key, found in of_class.items() if len(found) < shots):
        raise ValueError(
            f"--shots {shots}: the class {shorten(short[0])} has {len(of_class[short[0]])} training videos"
            + (f", and {len(short) - 1} others have too few" if len(short) > 1 else "")
            + "; pass fewer shots, or --classes without such classes."
        )
    chosen: set[tuple[str, float, float]] = set()
    for key, found in of_class.items():
        found = sorted(found, key=_identity)
        generator = np.random.default_rng([seed, crc32(key.encode(errors="surrogateescape"))])
        chosen |= {_identity(found[place]) for place in generator.permutation(len(found))[:shots]}
    return [sample for sample in samples if _identity(sample) in chosen]


def _identity(sample: Sample) -> tuple[str, float, float]:
    return sample.video_id, sample.start or 0.0, sample.end or 0.0


# ---- parts of the classes -------------------------------------------------------------------------------------------


def chosen_classes(classes: Classes, part: str) -> Classes:
    """Return the classes that --classes names, with ids from 0 in the old order.

    "all" are all; "base" and "novel" the published halves; "half:3" the half that draw number 3 takes (`half_draw`);
    anything else is a file with a key or name a line. Raises FileNotFoundError for a missing file; ValueError for an
    unknown class, and for halves that are not published.
    """
    if part == "all":
        return classes
    if match := HALF.fullmatch(part):
        return subset(classes, half_draw(classes.keys, int(match[1])))
    if part not in PARTS:
        if not os.path.isfile(part):  # False also for a text too long to be a name
            raise FileNotFoundError(
                f"--classes {quoted(part)} is not a file: pass all, base, novel, half:NUMBER or a file with one key a "
                "line."
            )
        return subset(classes, read_keys(Path(part), classes.keys, "--classes"))
    if not classes.base or len(classes.base) == len(classes):
        raise ValueError(
            f"--classes {part}: which of these {len(classes)} classes are base is not published; pass a file with the "
            "keys, one a line."
        )
    base = set(classes.base)
    return subset(classes, [key for key in classes.keys if (key in base) == (part == "base")])


def half_draw(keys: Sequence[str], number: int) -> list[str]:
    """Return the half of the classes, K // 2, that draw `number` of zero-shot evaluation takes.

    This is the draw of Brattoli et al. (CVPR 2020; github.com/bbrattoli/ZeroShotVideoClassification), which others
    repeat for ten numbers: the first half of numpy's old permutation with the number as its seed, in the order of ids.
    """
    drawn = np.random.RandomState(number).permutation(len(keys))[: len(keys) // 2]
    return [keys[place] for place in sorted(drawn.tolist())]


# ---- held-out groups ------------------------------------------------------------------------------------------------


def hold_out_groups(samples: Sequence[Sample], count: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Divide training samples into those to train on and at least `count` held-out ones, by whole groups.

    A sample without a group is one by itself. Each class keeps a group to train on. ValueError if that leaves fewer
    than `count` to hold out.
    """
    members: defaultdict[str, list[int]] = defaultdict(list)
    for row, sample in enumerate(samples):
        members[f"group {sample.group}" if sample.group else f"video {sample.video_id} {_identity(sample)}"].append(row)
    groups_left = Counter(label for rows in members.values() for label in {samples[row].label for row in rows})
    held: set[int] = set()
    names = sorted(members)
    for place in np.random.default_rng(seed).permutation(len(names)):
        if len(held) >= count:
            break
        rows = members[names[place]]
        labels = {samples[row].label for row in rows}
        if all(groups_left[label] > 1 for label in labels):
            groups_left.subtract(labels)
            held.update(rows)
    if len(held) < count:
        raise ValueError(
            f"--holdout_videos {count}: only {len(held)} of the {len(samples)} training videos can be held out, as "
            "each class keeps a group to train on; pass a smaller number."
        )
    return [sample for row, sample in enumerate(samples) if row not in held], [samples[row] for row in sorted(held)]


# ---- checks ---------------------------------------------------------------------------------------------------------


def check_protocol(training: Sequence[Sample], test: Sequence[Sample], classes: Classes) -> None:
    """Check lists before training; classes without a training video are noted in the log.

    Raises ValueError unless each class has one key and one name, each sample is of one of the classes, and no video
    and no group is in both lists. Shots from the training list of one split, tested on the test list of another, are
    refused so: that test list has training videos.
    """
    if not len(classes.keys) == len(classes.names) == len(set(classes.keys)):
        raise ValueError(
            f"There are {len(classes.keys)} classes with {len(classes.names)} names: give each class one name."
        )
    known = set(classes.keys)
    for name, samples in (("training", training), ("test", test)):
        if other := next((sample for sample in samples if sample.label not in known), None):
            raise ValueError(
                f"{other.listed_in or f'The {name} list'} has the video {shorten(other.video_id)} of the class "
                f"{shorten(other.label)}, which is none of the {len(known)} classes: pass --classes or --labels_csv "
                "with the classes of this list."
            )
    if shared := shared_videos(training, test):
        raise ValueError(
            f"{len(shared)} of the {len(test)} test videos are also training videos, the first is "
            f"{shorten(str(shared[0].path), 200)}: pass lists of the same --split, or lists that share no video."
        )
    groups = {sample.group for sample in training if sample.group}
    if near := [sample for sample in test if sample.group in groups]:
        raise ValueError(
            f"{len(near)} of the {len(test)} test videos are of a group with training videos, the first is "
            f"{shorten(near[0].video_id)} of the group {shorten(near[0].group)}, and clips of a group are near copies: "
            "pass the official lists of one split."
        )
    trained = {sample.label for sample in training}
    if without := [key for key in classes.keys if key not in trained]:
        log.info(
            "attention: %d of the %d classes have no training video: %s", len(without), len(classes), some(without)
        )
