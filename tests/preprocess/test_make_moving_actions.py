"""The command that writes the made world for action recognition: UCF101's files, one take a group, the same bytes each
time."""

import csv
import json
import re
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from dataloaders import ucf101
from main_task_recognition import main as recognise
from preprocess.make_moving_actions import KEYS, draw_group, draw_shots, file_name, main, plan
from preprocess.make_moving_shapes import main as make_moving_shapes
from preprocess.moving_shapes.actions import MOTIONS, class_key, draw_action
from preprocess.moving_shapes.stories import REVERSED
from tests.training_runs import lines_of

SMALL_CLIP = Path(__file__).parents[2] / "pretrained/moving_shapes_clip.safetensors"
SMALL = ["--train_groups", "4", "--test_groups", "2", "--image_size", "64", "--seed", "3", "--jobs", "1"]


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def lines(path: Path) -> list[str]:
    text = path.read_bytes().decode()
    assert text.endswith("\n")
    assert "\r" not in text
    return text.splitlines()


def pairs(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", newline="") as file:
        return dict(list(csv.reader(file))[1:])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "world"
    assert main(["--output_dir", str(folder), *SMALL]) == 0
    return folder


def test_the_lists_are_those_of_ucf101(world: Path) -> None:
    ids = dict(reversed(line.split()) for line in lines(world / "ucfTrainTestlist/classInd.txt"))
    assert list(ids) == sorted(ids) == list(KEYS)
    assert list(ids.values()) == [str(number) for number in range(1, 17)]
    training = lines(world / "ucfTrainTestlist/trainlist01.txt")
    test = lines(world / "ucfTrainTestlist/testlist01.txt")
    assert training == [f"{key}/v_{key}_g{n:02d}_c01.mp4 {ids[key]}" for key in KEYS for n in (3, 4, 5, 6)]
    assert test == [f"{key}/v_{key}_g{n:02d}_c01.mp4" for key in KEYS for n in (1, 2)]
    videos = {path.relative_to(world / "videos").as_posix() for path in (world / "videos").rglob("*.mp4")}
    assert videos == {line.split()[0] for line in [*training, *test]}


def test_names_and_maps(world: Path) -> None:
    names = lines(world / "labels.csv")
    assert names[0] == "id,name"
    named = dict(zip(KEYS, (line.split(",")[1] for line in names[1:]), strict=True))
    assert [line.split(",")[0] for line in names[1:]] == [str(row) for row in range(16)]
    assert named["MovesFromLeftToRight"] == "moves from left to right"
    assert all(key.lower() == name.replace(" ", "") for key, name in named.items()), "names can be joined to folders"

    mirrored, turned = pairs(world / "flip_map.csv"), pairs(world / "twins.csv")
    assert lines(world / "flip_map.csv")[0] == "class,mirrored"
    assert lines(world / "twins.csv")[0] == "class,reversed"
    assert mirrored == {
        "CirclesAnticlockwise": "CirclesClockwise",
        "CirclesClockwise": "CirclesAnticlockwise",
        "MovesFromLeftToRight": "MovesFromRightToLeft",
        "MovesFromRightToLeft": "MovesFromLeftToRight",
        "TurnsAnticlockwise": "TurnsClockwise",
        "TurnsClockwise": "TurnsAnticlockwise",
    }
    assert turned.items() > mirrored.items()
    assert len(turned) == 12
    assert all(turned[turned[key]] == key != turned[key] for key in turned)
    twins = pairs(world / "train_twins.csv")
    assert lines(world / "train_twins.csv")[0] == "video_id,twin_id"
    assert len(twins) == 6 * 4
    for one, other in twins.items():
        (_, first, group, _), (_, second, same_group, _) = one.split("_"), other.split("_")
        assert (turned[first], group) == (second, same_group)
        own, backwards = (
            frames_of(world / "videos" / key / f"{id_}.mp4") for key, id_ in ((first, one), (second, other))
        )
        assert (own == backwards[::-1]).all()
    base, novel = lines(world / "base_classes.txt"), lines(world / "novel_classes.txt")
    assert sorted([*base, *novel]) == list(KEYS)
    assert (len(base), len(novel)) == (10, 6)
    assert all((turned[key] in base) == (key in base) for key in turned)


def test_labels_with_names_exchanged_are_refused(world: Path, tmp_path: Path) -> None:
    flags = {"features_path": world / "videos", "data_path": world}
    assert ucf101.read_classes(labels_csv=world / "labels.csv", **flags).keys == KEYS
    text = (world / "labels.csv").read_text()
    exchanged = text.replace("clockwise", "?").replace("anti?", "clockwise").replace("?", "anticlockwise")
    (tmp_path / "labels.csv").write_text(exchanged)
    for read in (ucf101.read_classes, partial(ucf101.read_split, "train")):
        with pytest.raises(ValueError, match="classes are out of order"):
            read(labels_csv=tmp_path / "labels.csv", **flags)


def test_zero_shot_clip_is_blind_to_order(world: Path, tmp_path: Path) -> None:
    """The law of the world on its files: 50 in `direction`, and at most (12 / 2 + 4) / 16 in all."""
    flags = ["--datatype", "ucf101", "--data_path", str(world), "--features_path", str(world / "videos")]
    flags += ["--pretrained_clip_name", str(SMALL_CLIP), "--templates", "a shape {}", "--num_thread_reader", "0"]
    flags += ["--max_frames", "8", "--frame_sampling", "segment", "--feature_framerate", "0", "--max_words", "16"]
    assert recognise(["--do_eval", "--method", "clip4clip", *flags, "--output_dir", str(tmp_path)]) == 0
    (test,) = lines_of(tmp_path, "test")
    assert test["direction"] == 50.0
    assert test["top1"] <= 62.5


def test_few_shot_lists(world: Path) -> None:
    training = lines(world / "ucfTrainTestlist/trainlist01.txt")
    assert sorted(path.name for path in (world / "few_shot").iterdir()) == [
        "train1_few_shot_2.txt",
        "train1_few_shot_4.txt",
    ], "no list asks for more clips than there are"
    for shots in (2, 4):
        drawn = lines(world / f"few_shot/train1_few_shot_{shots}.txt")
        assert len(drawn) == len(set(drawn)) == 16 * shots
        from_one = [f"{path} {int(number) + 1}" for path, number in map(str.split, drawn)]
        assert set(from_one) <= set(training)
        assert {sum(line.startswith(key) for line in drawn) for key in KEYS} == {shots}
    many = {shots: draw_shots(range(16, 272), shots, 0) for shots in (8, 16)}
    assert not set(many[8]) <= set(many[16]), "drawn anew for each K"
    assert many[8] == draw_shots(range(16, 272), 8, 0) != draw_shots(range(16, 272), 8, 1)


def test_a_group_is_one_take_played_both_ways(world: Path) -> None:
    for group in plan(3, 2, 7):
        clips = dict(draw_group(group, (8, 12), 64))
        assert set(clips) == {group.motion, REVERSED.get(group.motion, group.motion)}
        if len(clips) == 2:
            forwards, backwards = clips.values()
            np.testing.assert_array_equal(forwards, backwards[::-1])
    # And what is in the files is what was drawn.
    group = next(group for group in plan(4, 2, 3) if (group.motion, group.number) == ("grow", 1))
    drawn = dict(draw_group(group, (8, 12), 64))["shrink"].astype(int)
    assert np.abs(drawn - frames_of(world / "videos/Shrinks/v_Shrinks_g01_c01.mp4")).mean() < 3
    for key, other in pairs(world / "twins.csv").items():
        for number in (1, 5):
            one, two = (frames_of(world / f"videos/{k}/v_{k}_g{number:02d}_c01.mp4") for k in (key, other))
            np.testing.assert_array_equal(one, two[::-1])
            assert (one != two).any()


def test_takes_differ_and_contents_of_the_test_are_held_out() -> None:
    groups = plan(40, 15, 0)
    assert len(groups) == 10 * 55
    assert len({group.seed for group in groups}) == len(groups)
    contents: dict[bool, set[str]] = {False: set(), True: set()}
    for group in groups:
        contents[group.test].add(draw_action(group.motion, group.test, np.random.default_rng(group.seed)).content)
    assert not contents[True] & contents[False]
    lengths = {len(clip) for group in groups[::5] for _, clip in draw_group(group, (8, 12), 32)}
    assert lengths == {8, 9, 10, 11, 12}
    first = next(draw_group(groups[0], (8, 8), 32))[1]
    assert len(first) == 8
    assert (first != next(draw_group(groups[1], (8, 8), 32))[1]).any()
    assert {class_key(motion) for group in groups for motion in group.motions} == set(KEYS)
    assert len(MOTIONS) == len(KEYS)


def test_groups_above_99_have_three_digits() -> None:
    assert file_name("Rises", 3) == "Rises/v_Rises_g03_c01.mp4"
    assert file_name("Rises", 271) == "Rises/v_Rises_g271_c01.mp4"


def test_clips_are_h264_with_key_frames_only(world: Path) -> None:
    with av.open(str(world / "videos/Hops/v_Hops_g01_c01.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 3
        assert 8 <= stream.frames <= 12
        assert [frame.key_frame for frame in container.decode(stream)] == [True] * stream.frames


def test_same_settings_give_the_same_bytes_on_any_number_of_processes(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    assert main(["--output_dir", str(again), *SMALL[:-1], "2"]) == 0
    names = sorted(path.relative_to(world) for path in world.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for name in names:
        assert (world / name).read_bytes() == (again / name).read_bytes(), name
    assert list(tmp_path.iterdir()) == [again]

    before = {path: path.stat().st_mtime_ns for path in again.rglob("*")}
    assert main(["--output_dir", str(again), *SMALL]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in again.rglob("*")}

    assert main(["--output_dir", str(again), *SMALL, "--test_groups", "7"]) == 2
    assert re.search(r"made with test_groups \d+, not 7: name another folder", capsys.readouterr().err)
    assert before == {path: path.stat().st_mtime_ns for path in again.rglob("*")}


def test_a_world_of_older_code_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "world"
    tiny = ["--output_dir", str(folder), *SMALL, "--train_groups", "1", "--test_groups", "1"]
    assert main(tiny) == 0
    settings = json.loads((folder / "settings.json").read_text())
    drawn = sorted(folder.rglob("*.mp4"))
    drawn[0].write_text("of older code")
    (folder / "settings.json").write_text(json.dumps(settings | {"sha256": "0"}))
    assert main(tiny) == 0
    assert json.loads((folder / "settings.json").read_text()) == settings
    assert drawn[0].stat().st_size > 100
    assert sorted(folder.rglob("*.mp4")) == drawn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_frames", "1"], "--max_frames must be in 2..1000, not 1"),
        (["--min_frames", "9", "--max_frames", "8"], "--min_frames 9 is more than --max_frames 8"),
        (["--image_size", "63"], "--image_size must be even"),
        (["--test_groups", "0"], "--test_groups must be in 1..100000, not 0"),
        (["--jobs", "0"], "--jobs must be in 1..1024, not 0"),
    ],
)
def test_wrong_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["--output_dir", str(tmp_path / "w"), *SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ["--output_dir", str(tmp_path / "w"), "--image_size", "32", "--frames", "2"]
    assert make_moving_shapes([*other, "--train_pairs", "1", "--test_pairs", "1"]) == 0
    assert main(["--output_dir", str(tmp_path / "w"), *SMALL]) == 2
    assert "files that this command has not made" in capsys.readouterr().err
    assert (tmp_path / "w/MSRVTT_data.json").exists()
    (tmp_path / "file").write_text("keep", encoding="utf-8")
    assert main(["--output_dir", str(tmp_path / "file"), *SMALL]) == 2
    assert "is a file: name a folder" in capsys.readouterr().err


def test_a_broken_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("preprocess.make_moving_actions.write_video", fail)
    assert main(["--output_dir", str(tmp_path / "w"), *SMALL]) == 2
    assert "disk full" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_error_of_another_process_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Processes of their own do not see a replaced function, but they do miss a class folder.
    monkeypatch.setattr("preprocess.make_moving_actions.KEYS", KEYS[1:])
    assert main(["--output_dir", str(tmp_path / "w"), *SMALL[:-1], "2"]) == 2
    assert "No such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
