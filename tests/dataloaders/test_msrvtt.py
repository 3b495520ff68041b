"""MSR-VTT's files: the published csv files, small ones in the same formats, and one sentence for every mistake."""

import csv
import json
from pathlib import Path

import pytest

from dataloaders import DATASETS
from dataloaders.msrvtt import EXPECTED, read_split
from dataloaders.samples import Sample


class Folder:
    """A small MSR-VTT on disk; the videos are empty files, which reading a split does not open."""

    def __init__(self, path: Path):
        self.features_path = path / "videos"
        self.features_path.mkdir()
        self.train_csv = path / "train.csv"
        self.val_csv = path / "test.csv"
        self.data_path = path / "data.json"
        self.write_train(["video2", "video0"])
        self.val_csv.write_text("key,vid_key,video_id,sentence\nret0,msr1,video1,a dog runs\nret1,msr3,video3,a cat\n")
        self.sentences = [(0, "a man"), (1, "a dog"), (2, "one"), (0, "someone"), (2, "two, three")]
        self.write_json(self.sentences)
        for name in ("video0", "video1", "video2", "video3"):
            (self.features_path / f"{name}.mp4").touch()

    def write_train(self, ids: list[str]) -> None:
        self.train_csv.write_text("\n".join(["video_id", *ids]) + "\n")

    def write_json(self, sentences: list[tuple[int, str]]) -> None:
        rows = [{"video_id": f"video{n}", "caption": caption, "sen_id": 1} for n, caption in sentences]
        self.data_path.write_text(json.dumps({"videos": [], "sentences": rows}))

    def read(self, split: str) -> list[Sample]:
        return read_split(
            split,
            data_path=self.data_path,
            features_path=self.features_path,
            train_csv=self.train_csv,
            val_csv=self.val_csv,
        )


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def test_train(folder):
    assert folder.read("train") == [
        Sample("video2", folder.features_path / "video2.mp4", ("one", "two, three")),
        Sample("video0", folder.features_path / "video0.mp4", ("a man", "someone")),
    ]


def test_test_split_needs_no_json(folder):
    folder.data_path.unlink()
    folder.train_csv.unlink()
    assert folder.read("test") == [
        Sample("video1", folder.features_path / "video1.mp4", ("a dog runs",)),
        Sample("video3", folder.features_path / "video3.mp4", ("a cat",)),
    ]


def test_several_captions_of_a_test_video_are_one_sample(folder):
    folder.val_csv.write_text('video_id,sentence\nvideo3,one\nvideo1,two\nvideo3,"three, four"\n')
    assert [(sample.video_id, sample.captions) for sample in folder.read("test")] == [
        ("video3", ("one", "three, four")),
        ("video1", ("two",)),
    ]


def test_csv_files_of_spreadsheet_programs(folder):
    folder.train_csv.write_bytes(b"\xef\xbb\xbfvideo_id,url\r\nvideo0,x\r\n\r\nvideo2,y\r\n")
    assert [sample.video_id for sample in folder.read("train")] == ["video0", "video2"]


def test_sentences_in_other_scripts(folder):
    folder.val_csv.write_text("video_id,sentence\nvideo3,\u4e00\u53ea\u732b\u2028!\n", encoding="utf-8")
    assert [sample.captions for sample in folder.read("test")] == [("\u4e00\u53ea\u732b\u2028!",)]


def test_other_extensions_come_after_mp4(folder):
    (folder.features_path / "video0.mp4").rename(folder.features_path / "video0.webm")
    (folder.features_path / "video2.avi").touch()
    assert [sample.path.name for sample in folder.read("train")] == ["video2.mp4", "video0.webm"]


def test_registry():
    assert DATASETS["msrvtt"] is read_split


# --- the published files ---


@pytest.fixture
def published(reference, tmp_path) -> Path:
    """Return a folder of the published csv files. MSRVTT_data.json is not public, so 20 captions per video replace it:
    the real file has that many. Empty files replace the videos."""
    folder = reference / "data" / "msrvtt"
    (tmp_path / "videos").mkdir()
    for number in range(10_000):
        (tmp_path / "videos" / f"video{number}.mp4").touch()
    sentences = [{"video_id": f"video{n % 10_000}", "caption": f"caption {n}"} for n in range(200_000)]
    (tmp_path / "data.json").write_text(json.dumps({"sentences": sentences}))
    return folder


def test_published_counts(published, tmp_path):
    ids = {}
    for name, expected in EXPECTED.items():
        samples = read_split(
            "test" if "test" in name else "train",
            data_path=tmp_path / "data.json",
            features_path=tmp_path / "videos",
            train_csv=published / name,
            val_csv=published / name,
        )
        assert (len(samples), sum(len(sample.captions) for sample in samples)) == expected
        ids[name] = [sample.video_id for sample in samples]
        assert len(set(ids[name])) == len(samples)
    train, small, test = (set(ids[name]) for name in EXPECTED)
    assert small < train
    assert not train & test
    assert len(train | test) == 10_000

    with (published / "MSRVTT_JSFUSION_test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = [(sample.video_id, sample.captions) for sample in samples]
    assert pairs == [(row["video_id"], (row["sentence"],)) for row in rows]
    assert pairs[0] == ("video9770", ("a person is connecting something to system",))


# --- mistakes ---


def assert_one_sentence(folder: Folder, split: str, error: type[Exception], *parts: str) -> None:
    with pytest.raises(error) as raised:
        folder.read(split)
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")
    for part in parts:
        assert part in message


def test_missing_folder(folder):
    folder.features_path = folder.features_path / "none"
    assert_one_sentence(folder, "train", FileNotFoundError, "--features_path", "is not a directory")


@pytest.mark.parametrize(
    ("split", "name", "flag"),
    [("train", "train_csv", "--train_csv"), ("train", "data_path", "--data_path"), ("test", "val_csv", "--val_csv")],
)
def test_missing_or_unreadable_lists(folder, split, name, flag):
    path = getattr(folder, name)
    path.write_bytes(b"\xff\xfe\x00\x01")
    assert_one_sentence(folder, split, ValueError, flag, str(path), "UTF-8")
    path.unlink()
    assert_one_sentence(folder, split, FileNotFoundError, flag, str(path))
    path.mkdir()
    assert_one_sentence(folder, split, FileNotFoundError, flag, str(path))


def test_csv_without_its_column(folder):
    folder.train_csv.write_text("id,url\nvideo0,x\n")
    assert_one_sentence(folder, "train", ValueError, "--train_csv", "no column 'video_id'", "id, url")
    folder.val_csv.write_text("video_id,caption\nvideo1,x\n")
    assert_one_sentence(folder, "test", ValueError, "--val_csv", "no column 'sentence'", "video_id, caption")


def test_empty_csv(folder):
    folder.train_csv.write_text("")
    assert_one_sentence(folder, "train", ValueError, "no column 'video_id'", "none")
    folder.train_csv.write_text("video_id\n")
    assert_one_sentence(folder, "train", ValueError, "lists no video")
    folder.val_csv.write_text("video_id,sentence\n")
    assert_one_sentence(folder, "test", ValueError, "lists no video")


@pytest.mark.parametrize("row", ["video3,", "video3", ",a cat", "video3,  "])
def test_csv_with_an_incomplete_row(folder, row):
    folder.val_csv.write_text(f"video_id,sentence\nvideo1,a dog\n{row}\n")
    assert_one_sentence(folder, "test", ValueError, "line 3", "is empty")


def test_csv_with_an_open_quote(folder):
    rows = ["video_id,sentence", 'video1,"a dog', *["video3,a cat"] * 300, 'video5,"a man"', "video6,a house"]
    folder.val_csv.write_text("\n".join(rows))
    assert_one_sentence(folder, "test", ValueError, "--val_csv", "line 2", "a quotation mark is not closed")


def test_broken_json(folder):
    folder.data_path.write_text('{"sentences": [')
    assert_one_sentence(folder, "train", ValueError, "--data_path", "not valid JSON")


@pytest.mark.parametrize(
    "content", [[], {}, {"sentences": [{"video_id": "video0"}]}, {"sentences": 3}, {"sentences": ["video0"]}, 4, None]
)
def test_json_of_another_kind(folder, content):
    folder.data_path.write_text(json.dumps(content))
    assert_one_sentence(folder, "train", ValueError, "--data_path", "`sentences`")


def test_a_training_video_without_caption(folder):
    folder.write_json([(0, "a man")])
    assert_one_sentence(folder, "train", ValueError, "no caption for video2", "first of 1", "train.csv")


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        ({"video_id": "video0", "caption": 3}, "'caption': 3"),
        ({"video_id": "video0", "caption": ["a", "dog"]}, "['a', 'dog']"),
        ({"video_id": "video0", "caption": {"text": "a dog"}}, "'text'"),
        ({"video_id": ["video0"], "caption": "a dog"}, "['video0']"),
        ({"video_id": True, "caption": "a dog"}, "True"),
        ({"video_id": " ", "caption": "a dog"}, "' '"),
        ({"video_id": "video0", "caption": "half a letter: \ud83d"}, "caption"),
        ({"video_id": "video0", "caption": "a\0b"}, "a\\x00b"),
    ],
)
def test_a_sentence_of_another_kind(folder, entry, shown):
    folder.data_path.write_text(json.dumps({"sentences": [entry]}))
    assert_one_sentence(
        folder, "train", ValueError, "--data_path", "`sentences` of objects with `video_id`", shown, '"a dog runs"'
    )


def test_ids_that_are_numbers(folder):
    folder.write_train(["2"])
    folder.data_path.write_text(json.dumps({"sentences": [{"video_id": 2, "caption": "a dog"}]}))
    assert [(sample.video_id, sample.captions) for sample in folder.read("train")] == [("2", ("a dog",))]


def test_empty_captions_are_left_out_and_counted(folder, caplog):
    caplog.set_level("INFO", "stop")
    folder.write_json([*folder.sentences, (0, " "), (2, "")])
    assert [sample.captions for sample in folder.read("train")] == [("one", "two, three"), ("a man", "someone")]
    assert "data.json has 2 empty captions, which are left out" in caplog.text


@pytest.mark.parametrize(("first", "noted"), [(7010, True), (9000, True), (20, False), (10_000, False)])
def test_another_count_is_noted_for_the_published_list_only(folder, caplog, first, noted):
    caplog.set_level("INFO", "stop")
    folder.val_csv = folder.val_csv.with_name("MSRVTT_JSFUSION_test.csv")
    folder.val_csv.write_text(f"video_id,sentence\nvideo{first},a dog\nvideo{first + 1},a cat\n")
    folder.read("test")
    assert ("gives 2 videos, the published split has 1000" in caplog.text) is noted


def test_unknown_split(folder):
    assert_one_sentence(folder, "val", ValueError, "no split 'val'")
