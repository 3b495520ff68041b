"""Filling the frame cache before training, with the flags of training."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dataloaders.datasets import LabelledClips, ViewedVideos
from dataloaders.views import Views
from engine.cli import parse_config
from engine.data import frame_cache, frame_reader
from engine.tasks.recognition import RecognitionSettings
from main_task_recognition import main as recognise
from main_task_retrieval import main as train
from modules.clip_weights import backbone_of
from preprocess.cache_frames import main
from preprocess.make_moving_actions import main as make_moving_actions
from tests.launch_scripts import commands_of, write_recorder
from tests.processes import heed_interrupts, run_as_group
from tests.small_data import SmallData, write_small_data
from tests.videos import write_video

ROOT = Path(__file__).parents[2]
SEGMENTS = ("--frame_sampling", "segment")


@pytest.fixture
def data(tmp_path: Path) -> SmallData:
    """Training videos 0..5 and test videos 6..8."""
    return write_small_data(tmp_path / "data", n_train=6, n_test=3)


def entries(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_training_then_decodes_nothing(data, tmp_path, capsys, monkeypatch):
    cache = ["--frame_cache", str(tmp_path / "cache")]
    assert main([*data.flags(), *SEGMENTS, *cache, "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'cache'} (raw), train split: 6 videos of about 0.0" in printed
    assert "train split: 6 of 6 videos are in the cache.\n" in printed
    assert "test split: 3 of 3 videos are in the cache.\n" in printed
    assert len(entries(tmp_path / "cache")) == 9
    monkeypatch.setattr("dataloaders.frames.read_frames", None)
    flags = ["--do_train", *data.flags(), *SEGMENTS, *cache, "--epochs", "1", "--batch_size", "4"]
    assert train([*flags, "--output_dir", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("flags", "count"),
    [(["--split", "train"], 6), (["--split", "test"], 3), (["--do_eval"], 3), (["--do_train"], 9)],
)
def test_the_splits_asked_for(data, tmp_path, flags, count, capsys):
    assert main([*data.flags(), "--frame_cache", str(tmp_path / "cache"), *flags]) == 0
    assert len(entries(tmp_path / "cache")) == count


def test_the_validation_split_is_stored_as_evaluation_reads_it(data, tmp_path, capsys, monkeypatch):
    """It is stored without random draws, like the test split."""
    lists = {split: tmp_path / f"{split}.csv" for split in ("val", "test")}
    for split, path in lists.items():
        path.write_text(f"path,caption,split\nvideo7.mp4,one,{split}\nvideo8.mp4,two,{split}\n")
    flags = [*data.flags(), *SEGMENTS, "--datatype", "custom", "--frame_cache", str(tmp_path / "cache")]
    assert main([*flags, "--val_csv", str(lists["val"]), "--split", "val"]) == 0
    assert "val split: 2 of 2 videos are in the cache." in capsys.readouterr().out
    monkeypatch.setattr("dataloaders.frames.read_frames", None)
    evaluation = ["--do_eval", *flags, "--val_csv", str(lists["test"]), "--output_dir", str(tmp_path / "run")]
    assert train(evaluation) == 0


def test_what_cannot_be_read_is_named_and_the_rest_is_done(data, tmp_path, capsys):
    (data.videos / "video0.mp4").write_text("no video")
    (data.videos / "video2.mp4").unlink()
    assert main([*data.flags(), "--frame_cache", str(tmp_path / "cache"), "--split", "train"]) == 1
    printed = capsys.readouterr()
    assert "train split: 4 of 6 videos are in the cache." in printed.out
    assert "video0.mp4 is not a video" in printed.err
    assert "video2.mp4 is missing" in printed.err
    assert len(entries(tmp_path / "cache")) == 4


def test_shards_make_the_same_files_as_one(data, tmp_path, capsys):
    (data.videos / "video2.mp4").unlink()
    whole = [*data.flags(), "--frame_cache", str(tmp_path / "whole"), "--split", "train"]
    assert main(whole) == 1
    capsys.readouterr()
    codes = [
        main([*data.flags(), "--frame_cache", str(tmp_path / "parts"), "--split", "train", "--shard", f"{n}/3"])
        for n in range(3)
    ]
    printed = capsys.readouterr().out
    assert sorted(codes) == [0, 0, 1]
    assert "train split (shard 1/3): 2 of 2 videos are in the cache." in printed
    assert "train split (shard 0/3): 2 of 3 videos are in the cache." in printed
    assert entries(tmp_path / "parts") == entries(tmp_path / "whole")


def fill(flags: list[str]) -> None:
    assert main(flags) == 0


def test_a_launch_script_runs_it_with_its_own_flags(data, tmp_path, capfd):
    environment = {
        "PROGRAM": "preprocess/cache_frames.py",
        "DATA_PATH": str(data.folder),
        "features_path": str(data.videos),
        "pretrained_clip_name": str(data.clip),
        "max_words": "12",
        "NGPU": "2",
    }
    script, flags = ROOT / "scripts" / "msrvtt.sh", ["--frame_cache", str(tmp_path / "cache")]
    (command,) = commands_of(script, write_recorder(tmp_path), *flags, **environment)
    assert command[:4] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert command[4] == str(ROOT / "preprocess/cache_frames.py")
    run_as_group(2, fill, command[5:])
    printed = capfd.readouterr().out
    assert "train split (shard 0/2): 3 of 3 videos are in the cache." in printed
    assert "train split (shard 1/2): 3 of 3 videos are in the cache." in printed
    assert len(entries(tmp_path / "cache")) == 9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--frame_cache is not given"),
        (["--frame_cache", "c", "--split", "dev"], "--split dev is not one of"),
        (["--frame_cache", "c", "--split", "val"], "MSR-VTT has no split 'val': pass train or test"),
        (["--frame_cache", "c", "--jobs", "0"], "--jobs 0 is out of range"),
        (["--frame_cache", "c", "--jobs"], "expected one argument"),
        (["--frame_cache", "c", "--shard", "2/2"], "--shard 2/2 is not of the form"),
        (["--frame_cache", "c", "--max_frame", "3"], "did you mean --max_frames?"),
    ],
)
def test_wrong_commands(data, flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*data.flags(), *flags]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "number",
    [*(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGKILL)), signal.SIGTERM],
)
def test_interrupted_and_started_again_it_makes_the_same_files(data, tmp_path, number):
    for n in range(6):  # long enough that the signal comes while they are read
        count = 60 if n < 5 else 300
        pixels = np.random.default_rng(n).integers(0, 256, (count, 96, 96, 3), np.uint8)
        write_video(data.videos / f"video{n}.mp4", pixels)

    def flags(folder: str) -> list[str]:
        cache = ["--frame_cache", str(tmp_path / folder)]
        return [*data.flags(), *SEGMENTS, *cache, "--split", "train", "--jobs", "1"]

    assert main(flags("whole")) == 0
    command = [sys.executable, str(ROOT / "preprocess" / "cache_frames.py"), *flags("stopped")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    # By name alone: a partial file may get its final name at any moment.
    while process.poll() is None and not list((tmp_path / "stopped").glob("*/[!.]*")):
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130), errors
    if number != signal.SIGKILL:
        assert errors.splitlines()[-1] == "Interrupted: run the same command again to go on."
        assert "Traceback" not in errors
    made = entries(tmp_path / "stopped")
    assert 0 < len(made) < 6
    assert main(flags("stopped")) == 0
    assert entries(tmp_path / "stopped") == entries(tmp_path / "whole")


@pytest.fixture
def actions(tmp_path) -> list[str]:
    """Draw 32 training and 16 test clips; return flags of recognition that read and cache them."""
    world, clip = tmp_path / "world", write_small_data(tmp_path / "data", 1, 1).clip
    tiny = ["--train_groups", "2", "--test_groups", "1", "--image_size", "32", "--jobs", "1"]
    assert make_moving_actions(["--output_dir", str(world), *tiny]) == 0
    return [
        "--datatype", "ucf101", "--data_path", str(world), "--features_path", str(world / "videos"), "--split", "1",
        "--pretrained_clip_name", str(clip), "--feature_framerate", "0", *SEGMENTS, "--max_frames", "2",
        "--max_words", "16", "--num_thread_reader", "0", "--frame_cache", str(tmp_path / "cache"),
        "--precision", "fp32",
    ]  # fmt: skip


def test_recognition_then_decodes_nothing(actions, tmp_path, capsys, monkeypatch):
    """Both halves of base-to-novel are there."""
    flags = [*actions, "--classes", "base"]
    assert main(["--task", "recognition", *flags]) == 0
    printed = capsys.readouterr().out
    for split, count in (("train", 20), ("test", 10), ("novel", 6)):
        assert f"{split} split: {count} of {count} videos are in the cache.\n" in printed
    assert main(["--task", "recognition", *flags, "--split", "train"]) == 0
    assert "test split" not in capsys.readouterr().out
    monkeypatch.setattr("dataloaders.frames.read_frames", None)
    training = ["--do_train", *flags, "--epochs", "1", "--batch_size", "4", "--output_dir", str(tmp_path / "run")]
    assert recognise(training) == 0


def test_whole_frames_and_views_are_stored(actions, monkeypatch):
    """Random crops cut squares out of whole frames, and a test with views takes more frames."""
    flags = [*actions, "--crop_scale", "0.5", "--flip", "mapped", "--test_views", "2x3"]
    assert main(["--task", "recognition", *flags]) == 0
    config = parse_config(["--do_train", *flags], RecognitionSettings)
    backbone = backbone_of(config.model.pretrained_clip_name, "", config.model.asked_of_clip())
    classes, cache = config.task.all_classes(config.data), frame_cache(config.data, config.run)
    training, test = (
        (config.task.list_split(config.data, split), frame_reader(config.data, backbone, split == "train", cache))
        for split in ("train", "test")
    )
    monkeypatch.setattr("dataloaders.frames.read_frames", None)
    clips = LabelledClips(*training, classes, 0, config.task.augmentation())
    assert [clips[0, row]["video"].shape for row in (0, 31)] == 2 * [(2, 3, 32, 32)]
    videos = ViewedVideos(*test, Views(2, 3))
    assert [videos[row]["video"].shape for row in (0, 15)] == 2 * [(6, 2, 3, 32, 32)]


def test_an_unknown_task(capsys):
    assert main(["--task", "captioning"]) == 2
    assert "--task captioning is not one of: retrieval, recognition" in capsys.readouterr().err
