"""The published lists of HMDB51, UCF101, Something-Something V2 and Kinetics: counts, classes, halves, shots, and the
label file that exchanges four classes. They are in STOP_REFERENCE, in data/recognition."""

import csv
import json
import lzma
import tarfile
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from dataloaders import ACTION_READERS, hmdb51, kinetics400, kinetics600, ssv2, ucf101
from dataloaders.action_lists import read_list
from dataloaders.classes import by_name, normalised, read_labels, renamed
from dataloaders.protocols import check_protocol, chosen_classes, few_shot
from dataloaders.samples import Sample, shared_videos
from tests.dataloaders.folders import assert_one_sentence

HALVES = {"hmdb51": ("hmdb", "hmdb_51"), "ucf101": ("ucf", "ucf_101"), "ssv2": ("ssv2", "ssv2_174")}
SIZES = {"hmdb51": 51, "ucf101": 101, "ssv2": 174}


@pytest.fixture(scope="module")
def lists(reference, tmp_path_factory) -> Path:
    """Unpack the lists."""
    source, folder = reference / "data" / "recognition", tmp_path_factory.mktemp("lists")
    if not source.is_dir():
        pytest.skip("STOP_REFERENCE has no data/recognition")
    for path in sorted(source.rglob("*.*")):
        to = folder / path.relative_to(source).parent
        to.mkdir(exist_ok=True)
        if path.name.endswith(".tar.xz"):
            with tarfile.open(path) as archive:
                archive.extractall(to, filter="data")
        elif path.suffix == ".xz":
            (to / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
        else:
            (to / path.name).write_bytes(path.read_bytes())
    (folder / "videos").mkdir()
    (folder / "ssv2" / "labels.json").write_bytes((folder / "ssv2" / "something-something-v2-labels.json").read_bytes())
    return folder


@pytest.fixture(scope="module")
def official(lists):
    """Return a function that reads a split of HMDB51 or UCF101 once."""
    read: dict[tuple, list[Sample]] = {}

    def samples(name: str, split: str, fold: int) -> list[Sample]:
        key = name, split, fold
        if key not in read:
            flags = {"data_path": lists / name, "features_path": lists / "videos", "fold": fold}
            read[key] = ACTION_READERS[name].read_split(split, **flags)
        return read[key]

    return samples


def names_of(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return [row["name"] for row in csv.DictReader(file)]


# ---- official lists ----


@pytest.mark.parametrize("fold", [1, 2, 3])
@pytest.mark.parametrize("name", ["hmdb51", "ucf101"])
def test_official_splits(official, lists, name, fold):
    train, test = official(name, "train", fold), official(name, "test", fold)
    reader = ACTION_READERS[name]
    assert (len(train), len(test)) == (reader.EXPECTED["train"][fold], reader.EXPECTED["test"][fold])
    classes = reader.read_classes(data_path=lists / name)
    assert len(classes) == SIZES[name]
    assert all(sample.group for sample in [*train, *test])
    check_protocol(train, test, classes)  # no video and no group in both
    counts = Counter(sample.label for sample in train), Counter(sample.label for sample in test)
    if name == "hmdb51":
        assert counts == (dict.fromkeys(classes.keys, 70), dict.fromkeys(classes.keys, 30))
    else:
        assert len(train) + len(test) == 13_320
        if fold == 1:
            assert (min(counts[1].values()), max(counts[1].values())) == (28, 49)
            assert len({sample.group for sample in [*train, *test]}) == 25 * 101


def test_all_videos_of_hmdb51(lists):
    files = list((lists / "hmdb51").glob("*_test_split1.txt"))
    rows = [line.split()[0] for path in files for line in path.read_text().splitlines()]
    assert (len(files), len(rows), len(set(rows))) == (51, 6766, 6766)
    known = by_name([path.name.removesuffix("_test_split1.txt") for path in files], "the files")
    for path in files:
        for line in path.read_text().splitlines():
            stem = line.split()[0].removesuffix(".avi")
            assert hmdb51.named_in(stem, known) == path.name.removesuffix("_test_split1.txt")
    assert [sum(mark in row for row in rows) for mark in "[#;("] == [16, 44, 7, 236]


def test_something_something(lists):
    flags = {"data_path": lists / "ssv2", "features_path": lists / "videos"}
    test = ssv2.read_split("test", val_csv=lists / "ssv2/validation_id_frames_label.txt", **flags)
    train = read_list(lists / "ssv2/train_id_frames_label.txt", "--train_csv")
    assert (len(train), len(test)) == (ssv2.EXPECTED["train"][1], ssv2.EXPECTED["test"][1]) == (168_913, 24_777)
    assert not {entry.path for entry in train} & {sample.video_id for sample in test}
    assert all(entry.n_frames for entry in train)
    classes = ssv2.read_classes(**flags)
    counts = Counter(sample.label for sample in test)
    assert (len(classes), len(counts), min(counts.values()), max(counts.values())) == (174, 174, 15, 530)
    place = {key: number for number, key in enumerate(classes.keys)}
    mirrored = {place[one]: place[other] for one, other in classes.mirrored.items()}
    assert mirrored == {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}
    assert len(classes.reversed) == 2 * len(ssv2.REVERSED)  # each name is a class
    assert all(classes.reversed[classes.reversed[key]] == key != classes.reversed[key] for key in classes.reversed)
    # Base classes are those with most training videos.
    numbers = Counter(entry.number for entry in train)
    by_count = sorted(classes.keys, key=lambda key: numbers[place[key]])
    assert set(classes.base) == set(by_count[len(classes) // 2 :])


def test_an_official_json_is_read_by_its_templates(lists, tmp_path):
    entries = json.loads((lists / "ssv2/sample_entries.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(entries))
    (tmp_path / "labels.json").write_bytes((lists / "ssv2/labels.json").read_bytes())
    samples = ssv2.read_split("train", data_path=tmp_path, features_path=lists / "videos")
    templates = {entry["id"]: entry["template"] for entry in entries}  # the excerpt has a video twice
    assert [sample.video_id for sample in samples] == list(templates)
    for sample in samples:
        assert sample.label == templates[sample.video_id].replace("[", "").replace("]", "")
    assert samples[0].path == lists / "videos" / f"{entries[0]['id']}.webm"


def test_kinetics_400_validation(lists):
    flags = {"features_path": lists / "videos", "val_csv": lists / "kinetics/kinetics-400_val.csv"}
    samples = kinetics400.read_split("test", **flags)
    assert len(samples) == kinetics400.EXPECTED["test"][1] == 19_906
    classes = kinetics400.read_classes(**flags)
    assert classes.keys == classes.names == read_labels(lists / "kinetics/label_map_400.txt")
    assert samples[0].path.name == "0wR5jVB-WPk_000417_000427.mp4"
    assert any(sample.video_id.startswith("-") for sample in samples)


# ---- label files ----


@pytest.mark.parametrize("name", ["hmdb51_labels_right.csv", "label_map.txt"])
def test_right_labels_of_hmdb51(lists, name):
    flags = {"data_path": lists / "hmdb51", "labels_csv": lists / "hmdb51" / name}
    classes = hmdb51.read_classes(data_path=lists / "hmdb51")
    assert hmdb51.read_classes(**flags) == classes
    assert classes.names == tuple(names_of(lists / "hmdb51/hmdb51_labels_right.csv"))


def test_swapped_labels_of_hmdb51_are_refused(lists, official, tmp_path):
    swapped = lists / "hmdb51/hmdb51_labels_swapped.csv"
    assert_one_sentence(
        lambda: hmdb51.read_classes(data_path=lists / "hmdb51", labels_csv=swapped), ValueError,
        "swapped.csv gives the id 20 to 'kick_ball'", "'kick' has it (4 classes",
    )  # fmt: skip
    classes = hmdb51.read_classes(data_path=lists / "hmdb51")
    assert_one_sentence(
        lambda: renamed(classes, str(swapped)), ValueError, "--class_names", "4 classes are out of order"
    )
    # Numeric lists with folders, as mmaction2 writes them, or without: the files' names tell the class too.
    test, place = official("hmdb51", "test", 1), {key: number for number, key in enumerate(classes.keys)}
    for folder in (True, False):
        path = tmp_path / "list.txt"
        names = (f"{s.label}/{s.video_id}.avi" if folder else f"{s.video_id}.avi" for s in test)
        path.write_text("".join(f"{name} {place[s.label]}\n" for name, s in zip(names, test, strict=True)))
        for data_path in (Path(), lists / "hmdb51"):
            read = partial(hmdb51.read_split, "test", data_path=data_path, features_path=lists / "videos", val_csv=path)
            right = read(labels_csv=lists / "hmdb51/hmdb51_labels_right.csv")
            assert [normalised(s.label) for s in right] == [normalised(s.label) for s in test]
            said = (
                ["gives the id 20"] if data_path.name else ["calls class 20 'kick ball'", "4 classes with 120 videos"]
            )
            assert_one_sentence(lambda: read(labels_csv=swapped), ValueError, *said)  # noqa: B023


def test_published_names_of_ucf101(lists):
    classes = ucf101.read_classes(data_path=lists / "ucf101")
    for name in ("ucf_101_labels.csv", "ucf_101_labels_spaced.csv"):
        assert ucf101.read_classes(data_path=lists / "ucf101", labels_csv=lists / "ucf101" / name) == classes
    spaced = [name.lower() for name in names_of(lists / "ucf101/ucf_101_labels_spaced.csv")]
    differing = [(own, theirs) for own, theirs in zip(classes.names, spaced, strict=True) if own != theirs]
    assert differing == [("yo yo", "yoyo")]
    assert renamed(classes, "raw").names == tuple(names_of(lists / "ucf101/ucf_101_labels.csv"))


def test_all_names_stay_apart_when_normalised(lists):
    for name, size in (("kinetics/label_map_400.txt", 400), ("kinetics/label_map_600.txt", 600)):
        assert len(by_name(read_labels(lists / name), name)) == size
    assert len(by_name(read_labels(lists / "ssv2/labels.json"), "labels")) == 174


# ---- few shots ----


@pytest.mark.parametrize("shots", [2, 4, 8, 16])
@pytest.mark.parametrize("name", ["hmdb51", "ucf101", "ssv2"])
def test_published_shots(lists, official, name, shots, caplog):
    reader, short = ACTION_READERS[name], HALVES[name][0]
    path = lists / f"few_shot/{short}_splits/train1_few_shot_{shots}.txt"
    flags = {"data_path": lists / name, "features_path": lists / "videos"}
    with caplog.at_level("INFO", logger="stop"):
        samples = reader.read_split("train", train_csv=path, **flags)
    assert f"{path} gives {len(samples)} videos, the published split has {reader.EXPECTED['train'][1]}" in caplog.text
    classes = reader.read_classes(**flags)
    assert Counter(sample.label for sample in samples) == dict.fromkeys(classes.keys, shots)
    assert len(samples) == SIZES[name] * shots
    if name == "ssv2":
        return
    train = {sample.video_id: sample.label for sample in official(name, "train", 1)}
    assert all(train[sample.video_id] == sample.label for sample in samples)


def test_shots_of_split_1_leak_into_the_test_of_other_splits(lists, official):
    for name, leaking in (("hmdb51", 471), ("ucf101", 1250)):
        short = HALVES[name][0]
        path = lists / f"few_shot/{short}_splits/train1_few_shot_16.txt"
        ids = {Path(entry.path).stem for entry in read_list(path, "--train_csv")}
        drawn = [sample for sample in official(name, "train", 1) if sample.video_id in ids]
        assert len(drawn) == len(ids) == 16 * SIZES[name]
        classes = ACTION_READERS[name].read_classes(data_path=lists / name)
        check_protocol(drawn, official(name, "test", 1), classes)
        others = [official(name, "test", fold) for fold in (2, 3)]
        assert len({sample.video_id for other in others for sample in shared_videos(drawn, other)}) == leaking
        own = few_shot(official(name, "train", 1), 16, 0)
        assert Counter(sample.label for sample in own) == dict.fromkeys(classes.keys, 16)
        for chosen, other in zip((drawn, own), others, strict=True):
            assert_one_sentence(lambda: check_protocol(chosen, other, classes), ValueError, "same --split")  # noqa: B023


# ---- base and novel ----


@pytest.mark.parametrize("name", HALVES)
def test_published_halves(lists, official, name):
    reader, (short, long) = ACTION_READERS[name], HALVES[name]
    classes = reader.read_classes(data_path=lists / name)
    folder = lists / "base2novel"
    counts = {"hmdb51": (416, 780, 750), "ucf101": (816, 2088, 1695), "ssv2": (1392, 17_562, 7215)}[name]
    halves = {part: chosen_classes(classes, part) for part in ("base", "novel")}
    read = partial(reader.read_split, data_path=lists / name, features_path=lists / "videos")
    for (part, half), n_test in zip(halves.items(), counts[1:], strict=True):
        labels = folder / f"{long}_{part}_labels.csv"
        assert {normalised(key) for key in half.keys} == {normalised(key) for key in names_of(labels)}
        numbers = [entry.number for entry in read_list(folder / f"{short}_splits/{part}_val.txt", "--val_csv")]
        assert (len(numbers), min(numbers), max(numbers)) == (n_test, 0, len(half) - 1)
        if name == "ssv2":
            continue
        own = [sample for sample in official(name, "test", 1) if sample.label in half.keys]
        assert len(own) == n_test
        theirs = read("test", val_csv=folder / f"{short}_splits/{part}_val.txt")
        assert {(s.video_id, s.label) for s in theirs} == {(s.video_id, s.label) for s in own}
        assert (half.ids(own).min(), half.ids(own).max()) == (0, len(half) - 1)
    assert len(halves["base"]) + len(halves["novel"]) == len(classes) == SIZES[name]
    for seed in (1, 2, 3):
        path, labels = folder / f"{short}_splits/fs_base_s{seed}_train.txt", folder / f"{long}_base_labels.csv"
        if name == "hmdb51":  # its label file exchanges sword and sword exercise
            said = ["calls class 19 'sword_exercise'", "2 classes with 32 videos"]
            assert_one_sentence(lambda: read("train", train_csv=path, labels_csv=labels), ValueError, *said)  # noqa: B023
            samples = read("train", train_csv=path)
        else:
            samples = read("train", train_csv=path, labels_csv=labels)
        assert len(samples) == counts[0]
        assert Counter(sample.label for sample in samples) == dict.fromkeys(halves["base"].keys, 16)


def test_halves_are_the_classes_with_most_training_videos(lists, official):
    for name in ("hmdb51", "ucf101"):  # of equally many, the later ones
        classes = ACTION_READERS[name].read_classes(data_path=lists / name)
        numbers = Counter(sample.label for sample in official(name, "train", 1))
        by_count = sorted(classes.keys, key=lambda key: numbers[key])
        assert set(classes.base) == set(by_count[len(classes) // 2 :])


def test_published_halves_of_kinetics_400(lists):
    flags = {"val_csv": lists / "kinetics/kinetics-400_val.csv", "features_path": lists / "videos"}
    classes = kinetics400.read_classes(**flags)
    official = {sample.video_id: normalised(sample.label) for sample in kinetics400.read_split("test", **flags)}
    for part, n_test in (("base", 9944), ("novel", 9933)):
        labels = lists / f"base2novel/kinetics_400_{part}_labels.csv"
        half = chosen_classes(classes, part)
        assert {normalised(key) for key in half.keys} == {normalised(key) for key in names_of(labels)}
        assert len(half) == 200
        path = lists / f"base2novel/k400_splits/{part}_val.txt"
        samples = kinetics400.read_split("test", features_path=lists / "videos", val_csv=path, labels_csv=labels)
        assert len(samples) == n_test
        theirs = {sample.video_id: normalised(sample.label) for sample in samples}
        both = theirs.keys() & official.keys()
        assert len(both) > 0.9 * n_test
        assert all(theirs[video_id] == official[video_id] for video_id in both)


# ---- zero-shot ----


def test_zero_shot_splits_of_kinetics_600(lists):
    known = {normalised(name) for name in read_labels(lists / "kinetics/label_map_400.txt")}
    all_600 = {normalised(name) for name in read_labels(lists / "kinetics/label_map_600.txt")}
    union = set()
    for number, n_videos in ((1, 14_084), (2, 13_978), (3, 14_136)):
        flags = {
            "features_path": lists / "videos",
            "val_csv": lists / f"zero_shot/ZS_split{number}_K600_eval.txt",
            "labels_csv": lists / f"zero_shot/ZS_split{number}_K600.csv",
        }
        classes, samples = kinetics600.read_classes(**flags), kinetics600.read_split("test", **flags)
        assert (len(classes), len(samples)) == (160, n_videos)
        names = {normalised(key) for key in classes.keys}
        assert not names & known
        assert names <= all_600
        assert {sample.label for sample in samples} == set(classes.keys)
        union |= names
    assert len(union) == 217


def test_zero_shot_classes_chosen_by_their_label_file(lists, tmp_path):
    rows = [f"{name},id{row},0,10" for row, name in enumerate(read_labels(lists / "kinetics/label_map_600.txt"))]
    (tmp_path / "val.csv").write_text("\n".join(["label,youtube_id,time_start,time_end", *rows]))
    classes = kinetics600.read_classes(features_path=tmp_path, val_csv=tmp_path / "val.csv")
    assert len(classes) == 600
    for number in (1, 2, 3):
        file = lists / f"zero_shot/ZS_split{number}_K600.csv"
        assert {normalised(key) for key in chosen_classes(classes, str(file)).keys} == set(
            map(normalised, names_of(file))
        )
