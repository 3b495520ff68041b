"""The command that writes the made world: MSR-VTT's files, true twins, a clean split, the same bytes each time."""

import csv
import json
from pathlib import Path

import av
import numpy as np
import pytest

from dataloaders.decode import read_frames
from dataloaders.frame_captions import read_frame_captions
from dataloaders.msrvtt import read_split
from preprocess.make_moving_shapes import draw_test_pairs, frame_captions, main, plan, write_video
from preprocess.moving_shapes.stories import Story, Thing
from preprocess.moving_shapes.takes import stage

SMALL = ["--train_pairs", "6", "--test_pairs", "5", "--frames", "6", "--image_size", "64", "--seed", "3"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "world"
    assert main(["--output_dir", str(folder), *SMALL]) == 0
    return folder


def test_the_reader_of_msrvtt_reads_it(world: Path) -> None:
    files = {
        "data_path": world / "MSRVTT_data.json",
        "features_path": world / "videos",
        "train_csv": world / "MSRVTT_train.csv",
        "val_csv": world / "MSRVTT_JSFUSION_test.csv",
    }
    training, test = read_split("train", **files), read_split("test", **files)
    assert len(training) == 12
    assert all(len(set(sample.captions)) == 2 for sample in training)
    assert len(test) == len({sample.captions for sample in test}) == 10
    assert not {sample.video_id for sample in training} & {sample.video_id for sample in test}
    decoded = read_frames(test[0].path, lambda n_frames, fps: range(n_frames))
    assert decoded.frames.shape == (6, 64, 64, 3)
    assert decoded.fps == pytest.approx(3.0)


def test_files_have_the_columns_of_msrvtt(world: Path) -> None:
    test = rows(world / "MSRVTT_JSFUSION_test.csv")
    assert list(test[0]) == ["key", "vid_key", "video_id", "sentence"]
    assert [row["key"] for row in test] == [f"ret{i}" for i in range(10)]
    assert all(row["vid_key"] == row["video_id"].replace("video", "msr") for row in test)
    sentences = json.loads((world / "MSRVTT_data.json").read_text(encoding="utf-8"))["sentences"]
    assert {row["video_id"]: row["sentence"] for row in test}.items() <= {
        sentence["video_id"]: sentence["caption"] for sentence in sentences
    }.items()
    assert len(list((world / "videos").iterdir())) == 22


def test_every_caption_of_a_training_clip_has_captions_of_its_frames(world: Path) -> None:
    data = json.loads((world / "MSRVTT_data.json").read_text(encoding="utf-8"))
    training = {video["video_id"] for video in data["videos"] if video["split"] == "train"}
    keys = {f"{row['video_id']}_{row['caption']}" for row in data["sentences"] if row["video_id"] in training}
    captions = read_frame_captions(world / "frame_captions.json", 6)
    assert captions.keys() == keys
    for twin in rows(world / "train_twins.csv"):
        ids = twin["video_id"], twin["twin_id"]
        one, other = ([texts for key, texts in captions.items() if key.startswith(f"{name}_")] for name in ids)
        assert one[0] == one[1] == other[0][::-1]


def test_a_caption_of_a_frame_tells_what_it_shows() -> None:
    right = Story((Thing("orange", "disc"),), ("right",))
    captions = frame_captions(stage(right, np.random.default_rng(0), 64), 5)
    assert all("orange disc at the" in caption for caption in captions)
    assert captions[0].endswith("left")
    assert captions[-1].endswith("right")
    appears = Story((Thing("red", "star"),), ("appear",))
    captions = frame_captions(stage(appears, np.random.default_rng(0), 64), 5)
    assert captions[0] == "an empty background"
    assert "red star" in captions[-1]


@pytest.mark.parametrize(("split", "name"), [("train", "train_twins.csv"), ("test", "twins.csv")])
def test_twins_are_each_other_backwards(world: Path, split: str, name: str) -> None:
    data = json.loads((world / "MSRVTT_data.json").read_text(encoding="utf-8"))
    ids = {video["video_id"] for video in data["videos"] if video["split"] == split}
    sentence = {row["video_id"]: row["caption"] for row in data["sentences"]}
    twins = rows(world / name)
    assert sorted(row[key] for row in twins for key in ("video_id", "twin_id")) == sorted(ids)
    for row in twins:
        one = frames_of(world / "videos" / f"{row['video_id']}.mp4").astype(int)
        other = frames_of(world / "videos" / f"{row['twin_id']}.mp4").astype(int)
        turned = np.abs(one - other[::-1]).mean()
        assert turned < 3
        assert np.abs(one - other).mean() > turned
        assert sentence[row["video_id"]] != sentence[row["twin_id"]]


def test_each_clip_has_one_key_frame_and_three_frames_a_second(world: Path) -> None:
    with av.open(str(world / "videos" / "video0.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 3
        assert stream.frames == 6
        assert [frame.key_frame for frame in container.decode(stream)] == [True] + 5 * [False]


def test_same_settings_give_the_same_bytes_and_are_not_made_again(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    assert main(["--output_dir", str(again), *SMALL]) == 0
    names = sorted(path.relative_to(world) for path in world.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for name in names:
        assert (world / name).read_bytes() == (again / name).read_bytes(), name
    assert list(tmp_path.iterdir()) == [again]

    before = {path: path.stat().st_mtime_ns for path in again.rglob("*")}
    assert main(["--output_dir", str(again), *SMALL]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in again.rglob("*")}

    assert main(["--output_dir", str(again), *SMALL, "--seed", "4"]) == 2
    assert "holds a world made with seed 3, not 4: name another folder" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in again.rglob("*")}
    other = tmp_path / "other"
    assert main(["--output_dir", str(other), *SMALL, "--seed", "4"]) == 0
    assert (other / "MSRVTT_data.json").read_bytes() != (world / "MSRVTT_data.json").read_bytes()


def test_train_and_test_are_disjoint_in_content_and_sentence_but_not_in_words() -> None:
    for seed in (0, 1):
        training, test = plan(800, 120, 5, seed)
        assert not {clip.story.content for clip in training} & {clip.story.content for clip in test}
        learned = {text for clip in training for text in clip.captions}
        asked = [text for clip in test for text in clip.captions]
        assert len(asked) == len(set(asked)) == 240
        assert not learned & set(asked)
        words = {word for text in learned for word in text.replace(",", "").split()}
        assert {word for text in asked for word in text.replace(",", "").split()} <= words
        assert {clip.story.family for clip in test} == {clip.story.family for clip in training}
        assert sorted(int(clip.video_id[5:]) for clip in test) == list(range(1600, 1840))
        for clips in (training, test):
            for one, other in zip(clips[::2], clips[1::2], strict=True):
                assert other.story == one.story.reversed()
                assert other.seed == one.seed


def test_a_twin_s_caption_is_the_same_sentence_but_for_the_direction() -> None:
    training, _ = plan(200, 1, 5, 0)
    ways = {"left", "right", "leftwards", "rightwards", "clockwise", "anticlockwise"}
    for one, other in zip(training[::2], training[1::2], strict=True):
        for told, reversed_ in zip(one.captions, other.captions, strict=True):
            assert told != reversed_
            if one.story.family in ("horizontal", "circling", "spinning"):
                pairs = zip(told.split(), reversed_.split(), strict=True)
                assert {word for pair in pairs if pair[0] != pair[1] for word in pair} <= ways
            if one.story.is_order:
                assert sorted(told.replace(",", "").split()) == sorted(reversed_.replace(",", "").split())


def test_no_test_caption_fits_two_contents() -> None:
    pairs = draw_test_pairs(100, np.random.default_rng(0))
    told = [story for story, _, _ in pairs]
    singles = [(story.things[0], story.family, story.speed) for story in told if not story.is_order]
    assert len(singles) == len(set(singles))
    with_speeds = {(thing, family): set() for thing, family, _ in singles}
    for thing, family, speed in singles:
        with_speeds[thing, family].add(speed)
    assert {frozenset(speeds) for speeds in with_speeds.values() if len(speeds) > 1} == {frozenset({"fast", "slow"})}
    orders = [frozenset(story.things) for story in told if story.is_order]
    assert len(orders) == len(set(orders))


def test_video_frames_survive_the_file(tmp_path: Path) -> None:
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    frames[np.arange(5), :, 8 * np.arange(5)] = 255
    frames[:, 16:] = (200, 60, 30)
    write_video(tmp_path / "a.mp4", frames)
    assert np.abs(frames_of(tmp_path / "a.mp4").astype(int) - frames)[:, 18:].max() < 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "1"], "--frames must be in 2..1000, not 1"),
        (["--image_size", "63"], "--image_size must be even"),
        (["--test_pairs", "0"], "--test_pairs must be in"),
        (["--captions_per_video", "9"], "--captions_per_video must be in 1..8, not 9"),
    ],
)
def test_wrong_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["--output_dir", str(tmp_path / "w"), *SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_more_pairs_than_the_world_has_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.make_moving_shapes._MAX_DRAWS", 3)
    with pytest.raises(ValueError, match=r"--test_pairs 5000 is too many .* ask for \d+ or fewer"):
        draw_test_pairs(5000, np.random.default_rng(0))


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    assert main(["--output_dir", str(tmp_path), *SMALL]) == 2
    assert "files that this command has not made" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_broken_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("preprocess.make_moving_shapes.write_video", fail)
    assert main(["--output_dir", str(tmp_path / "w"), *SMALL]) == 2
    assert list(tmp_path.iterdir()) == []
