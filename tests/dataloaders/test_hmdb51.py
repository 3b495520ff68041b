"""HMDB51's official files, and lists of mmaction2 on its videos, with the names that break shells and parsers."""

from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from dataloaders.decode import read_frames
from dataloaders.hmdb51 import group_of, named_in, read_classes, read_split
from tests.dataloaders.folders import assert_one_sentence, touch_videos, write_lines
from tests.ffmpeg_files import ffmpeg, moving

KEYS = ("draw_sword", "kick", "kick_ball", "sword")
ODD = "[KAMI]_Toradora_-_13_[H.264];_#1_(1)&'2'_sword_u_cm_np2_ba_med_6.avi"
ROWS = {
    "draw_sword": [
        ("Blade_Of_Fury_-_Scene_draw_sword_f_cm_np1_ri_med_3.avi", 1), ("-x_draw_sword_f_nm_np10_le_bad_0.avi", 2),
    ],
    "kick": [("Best_fight_kick_f_cm_np1_ba_bad_5.avi", 2), ("other_kick_f_cm_np1_ba_bad_5.avi", 0)],
    "kick_ball": [("kick__2_kick_ball_f_cm_np1_ba_bad_5.avi", 1)],
    "sword": [(ODD, 1)],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lists = tmp_path / "testTrainMulti_7030_splits"
    lists.mkdir()
    for key, rows in ROWS.items():
        write_lines(lists / f"{key}_test_split2.txt", [f"{name} {code} " for name, code in rows])
    touch_videos(tmp_path / "videos", f"sword/{ODD}", f"draw_sword/{ROWS['draw_sword'][1][0].replace('.avi', '.mp4')}")
    return tmp_path


@pytest.mark.parametrize("below", ["", "testTrainMulti_7030_splits"])
def test_official_files(folder, below):
    read = partial(read_split, data_path=folder / below, features_path=folder / "videos", fold=2)
    train, test = read("train"), read("test")
    assert [sample.label for sample in train] == ["draw_sword", "kick_ball", "sword"]
    assert [sample.label for sample in test] == ["draw_sword", "kick"]
    assert [sample.group for sample in train] == [
        "draw_sword Blade_Of_Fury_-_Scene", "kick_ball kick__2", "sword [KAMI]_Toradora_-_13_[H.264];_#1_(1)&'2'",
    ]  # fmt: skip
    assert train[2].path == folder / "videos/sword" / ODD
    assert train[2].path.is_file()
    assert test[0].path == folder / "videos/draw_sword/-x_draw_sword_f_nm_np10_le_bad_0.mp4"
    assert test[0].video_id == "-x_draw_sword_f_nm_np10_le_bad_0"
    classes = read_classes(data_path=folder)
    assert (classes.keys, classes.names) == (KEYS, ("draw sword", "kick", "kick ball", "sword"))


def test_lists_with_folders_without_and_separated_by_commas(folder):
    names = [f"{key}/{rows[0][0]}" for key, rows in ROWS.items()]
    for number, line in enumerate(("{key}/{file} {n}", "{file} {n}", "{key}/{file},{n}", "a/b/{key}/{file}\t{n}")):
        path = folder / f"list{number}.txt"
        write_lines(path, [line.format(key=Path(x).parent, file=Path(x).name, n=9 - n) for n, x in enumerate(names)])
        samples = read_split("train", data_path=folder, features_path=folder / "videos", train_csv=path)
        assert [sample.label for sample in samples] == list(KEYS)
        assert samples[3].path == folder / "videos/sword" / ODD


def test_without_official_files_the_classes_are_the_folders(folder):
    write_lines(folder / "list.txt", ["kick/a.avi 1", "sword/b.avi 2", "kick_ball/c.avi 0"])
    flags = {"features_path": folder / "videos", "train_csv": folder / "list.txt"}
    assert read_classes(**flags).keys == ("kick_ball", "kick", "sword")  # as the list numbers them
    assert [sample.label for sample in read_split("train", **flags)] == ["kick", "sword", "kick_ball"]
    write_lines(folder / "list.txt", ["kick/a.avi", "sword/b.avi", "kick_ball/c.avi"])
    assert read_classes(**flags).keys == ("kick", "kick_ball", "sword")


def test_what_a_file_name_tells():
    known = {key.replace("_", ""): key for key in KEYS}
    assert named_in("a_sword_u_cm_np2_ba_med_6", known) == "sword"
    assert named_in("draw_a_sword_u_cm_np2_ba_med_6", known) == "sword"
    assert named_in("a_draw_sword_u_cm_np2_ba_med_6", known) == "draw_sword"
    assert named_in("a_juggle_u_cm_np2_ba_med_6", known) is None
    assert named_in("sword", known) is None
    assert group_of("sword", "sword") == ""


def test_wrong_files(folder):
    read = partial(read_split, "train", data_path=folder, features_path=folder / "videos", fold=2)
    lists = folder / "testTrainMulti_7030_splits"
    write_lines(lists / "kick_test_split2.txt", ["a_kick_f_cm_np1_ba_bad_5.avi 3"])
    assert_one_sentence(read, ValueError, "kick_test_split2.txt", "avi 3'", "0 for neither")
    (lists / "kick_test_split2.txt").unlink()
    write_lines(lists / "kick_test_split1.txt", ["a_kick_f_cm_np1_ba_bad_5.avi 1"])
    assert_one_sentence(read, FileNotFoundError, "kick_test_split2.txt")
    empty = partial(read_split, "train", data_path=folder / "videos", features_path=folder / "videos")
    assert_one_sentence(empty, FileNotFoundError, "_test_split1.txt")
    assert_one_sentence(partial(read, fold=4), ValueError, "no split 4")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["kick/a.avi 0", "sword/b.avi 0"], "has the label 0, but kick has it too"),
        (["kick/a.avi 0", "kick/b.avi 1"], "kick also has 0"),
        (["kick/a.avi 0", "a.avi 1"], "lies in no folder of a class"),
        (["juggle/a.avi 0", "train/b.avi 9"], "has the label 9, but 4 classes"),
        (["a.avi", "b.avi"], "neither a folder nor a label"),
        (["a.avi", "b.avi 0"], "not like the others"),
        (["../kick/b.avi 0"], "leads out of"),
        (["/data/kick/b.avi 0"], "absolute path"),
    ],
)
def test_wrong_lists(folder, lines, said):
    write_lines(folder / "list.txt", lines)
    read = partial(read_split, "test", data_path=folder, features_path=folder / "videos", val_csv=folder / "list.txt")
    assert_one_sentence(read, ValueError, "list.txt", said)


def test_a_flat_list_without_telling_names_counts_as_the_classes_do(folder, caplog):
    write_lines(folder / "list.txt", ["val/a.avi 1", "val/b.avi 3"])
    with caplog.at_level("INFO", logger="stop"):
        samples = read_split("test", data_path=folder, features_path=folder / "videos", val_csv=folder / "list.txt")
    assert [sample.label for sample in samples] == ["kick", "sword"]
    assert "nothing checks that its numbers are those of the data set's own order" in caplog.text
    assert "the lists name 4 classes, HMDB51 has 51" in caplog.text  # as when the file of a class is missing
    assert "the published split has" not in caplog.text  # these four classes are not HMDB51


def test_folders_of_frames(folder):
    write_lines(folder / "list.txt", ["sword/a 12 3", "kick/b 30 1"])
    read = partial(
        read_split, "train", data_path=folder, features_path=folder / "videos", train_csv=folder / "list.txt"
    )
    touch_videos(folder / "videos", "sword/a.mp4", "kick/b.mp4")  # the videos are there after all
    assert [(s.path.name, s.label) for s in read()] == [("a.mp4", "sword"), ("b.mp4", "kick")]
    (folder / "videos/sword/a.mp4").unlink()
    touch_videos(folder / "videos", *(f"sword/a/img_{n:05d}.jpg" for n in range(1, 13)))
    assert_one_sentence(read, ValueError, "list.txt", "sword/a, a folder of frames", "-c copy DIR.mkv")


def test_a_video_made_of_a_folder_of_frames_by_the_command_of_the_message(folder):
    pictures = moving(7, height=47, width=61)
    frames = touch_videos(folder / "videos", *(f"sword/a/img_{n:05d}.jpg" for n in range(1, 8))) / "sword/a"
    for number, picture in enumerate(pictures, 1):
        assert cv2.imwrite(str(frames / f"img_{number:05d}.jpg"), picture[..., ::-1])
    write_lines(folder / "list.txt", ["sword/a 7 3"])
    read = partial(
        read_split, "train", data_path=folder, features_path=folder / "videos", train_csv=folder / "list.txt"
    )
    with pytest.raises(ValueError, match="ffmpeg") as raised:
        read()
    command = str(raised.value).partition("(ffmpeg ")[2].partition(" keeps")[0]
    ffmpeg(*command.replace("DIR", str(frames)).split())
    (sample,) = read()
    assert sample.path == folder / "videos/sword/a.mkv"
    found = read_frames(sample.path, lambda n, fps: range(n))
    differences = np.abs(found.frames.astype(int)[:, None] - pictures).mean(axis=(2, 3, 4))  # [7, 7]
    assert differences.argmin(axis=1).tolist() == list(range(7))
    with av.open(str(sample.path)) as container:
        stored = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    assert stored == [path.read_bytes() for path in sorted(frames.iterdir())]
