"""A run checks its lists: videos in both splits, captions that are cut, and files of another kind."""

import json
import re
from pathlib import Path

import pytest

from engine.messages import keep_ends
from main_task_retrieval import main
from preprocess.cache_frames import main as cache_frames
from preprocess.check_videos import main as check_videos
from tests.small_data import SmallData


@pytest.fixture
def run(small_data: SmallData, tmp_path: Path):
    """Return a function that runs the program on given lists and returns its exit code and its output with the log."""

    def call(train: str, test: str, capsys, *more: str) -> tuple[int, str]:
        for name, rows in (("train.csv", train), ("test.csv", test)):
            (tmp_path / name).write_text(f"path,caption,start,end\n{rows}\n")
        code = main([
            "--datatype", "custom", "--train_csv", str(tmp_path / "train.csv"), "--val_csv", str(tmp_path / "test.csv"),
            "--features_path", str(small_data.videos), "--pretrained_clip_name", str(small_data.clip),
            "--output_dir", str(tmp_path / "run"), "--precision", "fp32", "--max_frames", "2", "--max_words", "6",
            "--num_thread_reader", "0", "--feature_framerate", "0", "--epochs", "1", "--batch_size", "2",
            "--expand_msrvtt_sentences", *more,
        ])  # fmt: skip
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


ONE_AND_TWO = "video0.mp4,a red film,,\nvideo1.mp4,a green film,,"


def test_a_test_video_in_training_is_refused_before_anything_is_written(run, tmp_path, capsys):
    code, said = run(ONE_AND_TWO, "video2.mp4,a film,,\nvideo1.mp4,the same film,,", capsys, "--do_train")
    assert code == 2
    assert "error: 1 of the 2 videos of the test split are also in the training split, the first is " in said
    assert "video1.mp4: pass lists that share no video, or --allow_overlap" in said
    assert not (tmp_path / "run").exists()
    code, said = run(ONE_AND_TWO, ONE_AND_TWO, capsys, "--do_eval", "--qb_norm")
    assert code == 2
    assert "2 of the 2 videos" in said


def test_an_overlap_that_is_allowed_is_in_the_log(run, tmp_path, capsys):
    assert run(ONE_AND_TWO, ONE_AND_TWO, capsys, "--do_train", "--allow_overlap")[0] == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "attention: 2 of the 2 videos of the test split are also in the training split, the first is " in log


def test_evaluation_alone_needs_no_training_list(run, tmp_path, capsys):
    assert run(ONE_AND_TWO, ONE_AND_TWO, capsys, "--do_eval")[0] == 0
    assert "attention" not in (tmp_path / "run" / "log.txt").read_text()


def test_train_and_test_may_share_a_file_with_different_windows(run, tmp_path, capsys):
    halves = "video0.mp4,a,0,0.7\nvideo1.mp4,b,,0.7", "video0.mp4,a,0.7,\nvideo1.mp4,b,0.7,"
    assert run(*halves, capsys, "--do_train")[0] == 0
    later = "video0.mp4,a,0.6,\nvideo1.mp4,b,0.7,"
    assert "1 of the 2 videos" in run(halves[0], later, capsys, "--do_train")[1]


def test_the_log_counts_cut_captions_of_both_splits(run, tmp_path, capsys):
    training = "video0.mp4,a red film,,\nvideo1.mp4,a green film of a dog,,"
    test = "video2.mp4,a long film of a dog,,\nvideo3.mp4,a long film of a cat,,\nvideo3.mp4,short,,"
    assert run(training, test, capsys, "--do_train")[0] == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "test split: 2 of 3 captions lose words at --max_words 6 (the longest has 8); 2 captions read like" in log
    assert "training split: 1 of 2 captions lose words at --max_words 6 (the longest has 8)\n" in log


def test_the_quickstart_lists_are_not_mistaken_for_the_published_ones(small_data, tmp_path, capsys):
    flags = ["--do_eval", *small_data.flags(), "--output_dir", str(tmp_path / "run")]
    assert main(flags) == 0  # its test list has the name of the published one
    assert "published" not in (tmp_path / "run" / "log.txt").read_text()


@pytest.fixture(scope="module")
def one_line(tmp_path_factory) -> Path:
    """Write a JSON file of five megabytes in one line."""
    path = tmp_path_factory.mktemp("one_line") / "file.json"
    path.write_text(json.dumps({f"key {n} " + "x" * 400: "y" * 4600 for n in range(1000)}))
    return path


@pytest.mark.parametrize(
    ("flag", "ending"),
    [
        *[("train_csv", ""), ("val_csv", ""), ("data_path", ""), ("twins_csv", ""), ("train_twins_csv", "")],
        *[("init_model", ".safetensors"), ("init_model", ".pt"), ("resume", ".pt")],
        *[("pretrained_clip_name", end) for end in (".safetensors", ".pt", ".json")],
    ],
)
def test_a_list_with_a_line_of_megabytes_makes_a_short_message(small_data, tmp_path, one_line, flag, ending, capsys):
    path = tmp_path / f"file{ending}"
    path.symlink_to(one_line)
    flags = [*small_data.flags(), "--output_dir", str(tmp_path / "run"), f"--{flag}", str(path)]
    assert main(["--do_train", "--epochs", "1", "--batch_size", "4", *flags]) == 2
    message = capsys.readouterr().err
    assert re.match(r"error: [^\n]+\n$", message.rpartition("\r")[2])
    assert "file" in message
    assert len(message) < 1000


def test_a_value_of_megabytes_on_a_command_line(small_data, tmp_path, capsys):
    long = "x" * 100_000
    for command, flags in (
        (main, ["--do_eval", "--epochs", long]),
        (main, ["--do_eval", f"--{long}"]),
        (main, ["--do_eval", "--method", long]),
        (main, ["--do_eval", *small_data.flags(), "--val_csv", long]),
        (main, ["--do_eval", *small_data.flags(), "--features_path", long]),
        (main, ["--do_eval", *small_data.flags(), "--pretrained_clip_name", long]),
        (cache_frames, ["--split", long]),
        (check_videos, ["--features_path", long, "--val_csv", long, "--split", "test"]),
    ):
        assert command([*flags, "--output_dir", str(tmp_path)] if command is main else flags) == 2
        assert len(capsys.readouterr().err) < 2200


def test_a_message_keeps_both_ends():
    assert keep_ends("short") == "short"
    assert keep_ends("abcdef" + "x" * 100 + "uvwxyz", 12) == "abcdef [... 100 characters ...] uvwxyz"
