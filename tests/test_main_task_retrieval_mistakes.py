"""Missing and broken videos, wrong flags and losses that diverge: one sentence each; videos left out are counted."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from main_task_retrieval import main
from tests.retrieval_runs import error_of, lines_of, scores
from tests.small_data import SmallData, write_small_data

ROOT = Path(__file__).parent.parent


def test_apart_is_refused_with_twins_and_in_large_batches(small_data, tmp_path, capsys):
    """Check that captions for which an epoch has too few batches are refused too."""
    twins = tmp_path / "twins.csv"
    twins.write_text("video_id,twin_id\nvideo0,video1\n")
    flags = ["--do_train", *small_data.flags(), "--same_video", "apart", "--output_dir", str(tmp_path / "run")]
    message = error_of([*flags, "--batch_size", "4", "--train_twins_csv", str(twins)], capsys)
    assert message == "--same_video apart does not work with --train_twins_csv: leave one of them out."
    message = error_of([*flags, "--batch_size", "12"], capsys)
    assert "a video has 2 and an epoch 1: pass --batch_size 10 or less" in message


@pytest.fixture
def own_data(tmp_path) -> SmallData:
    """Write data that a test may damage."""
    return write_small_data(tmp_path / "data", n_train=4, n_test=2)


def test_missing_video(own_data, capsys):
    (own_data.videos / "video4.mp4").unlink()
    message = error_of(["--do_eval", *own_data.flags()], capsys)
    assert "video4.mp4 is missing" in message


@pytest.mark.parametrize("workers", ["0", "1"])
def test_broken_video_in_any_process(own_data, tmp_path, workers, capsys):
    (own_data.videos / "video5.mp4").write_bytes(b"this is no video")
    flags = [*own_data.flags(), "--output_dir", str(tmp_path / "run"), "--num_thread_reader", workers]
    message = error_of(["--do_eval", *flags], capsys)
    assert "video5.mp4" in message


def test_left_out_videos_are_counted_and_listed(tmp_path, capsys):
    data = write_small_data(tmp_path / "data", n_train=6, n_test=5)
    (data.videos / "video1.mp4").write_bytes(b"this is no video")
    (data.videos / "video7.mp4").unlink()
    (data.videos / "video9.mp4").write_bytes(b"")
    results, out = tmp_path / "results.csv", tmp_path / "run"
    flags = [*data.flags(), "--results_csv", str(results), "--output_dir", str(out)]
    training = ["--do_train", *flags, "--epochs", "1", "--batch_size", "4", "--lr", "1e-3"]
    assert "video7.mp4 is missing" in error_of(training, capsys)
    message = error_of([*training, "--allow_missing", "1"], capsys)
    assert "the first of 2 unusable among the 5 videos of the test split, --allow_missing is 1" in message
    assert not results.exists()

    cached = ["--frame_cache", str(tmp_path / "cache")]
    runs = []
    for more in ([], cached, cached):
        assert main([*training, "--allow_missing", "2", *more]) == 0
        runs.append(scores(lines_of(out / "metrics.jsonl")[-1]))
    assert runs[0] == runs[1] == runs[2]
    assert [row["videos"] for row in csv.DictReader(results.open())] == ["3 of 5"] * 3
    logged = (out / "log.txt").read_text()
    assert f"left out of the test split: {data.videos / 'video7.mp4'} is missing" in logged
    assert f"left out of the test split: {data.videos / 'video9.mp4'} is empty" in logged
    assert f"left out of the train split: {data.videos / 'video1.mp4'} is not a video" in logged
    assert "training split: 5 of 6 videos, 10 pairs" in logged
    assert "test split, 3 of 5 videos, selection: last epoch" in logged
    assert lines_of(out / "metrics.jsonl")[-1]["videos"] == "3 of 5"


def test_twins_of_videos_left_out(tmp_path):
    data = write_small_data(tmp_path / "data", n_train=4, n_test=4)
    (data.videos / "video4.mp4").unlink()
    (tmp_path / "twins.csv").write_text("video_id,twin_id\nvideo4,video5\nvideo6,video7\n")
    flags = [*data.flags(), "--output_dir", str(tmp_path / "run"), "--twins_csv", str(tmp_path / "twins.csv")]
    assert main(["--do_eval", *flags, "--allow_missing", "1"]) == 0
    assert "t2v twins" in lines_of(tmp_path / "run" / "metrics.jsonl")[-1]


def test_held_out_videos_take_their_training_twins_along(tmp_path):
    data, out = write_small_data(tmp_path / "data", n_train=8, n_test=2), tmp_path / "run"
    (tmp_path / "twins.csv").write_text(
        "video_id,twin_id\nvideo0,video1\nvideo2,video3\nvideo4,video5\nvideo6,video7\n"
    )
    flags = ["--do_train", *data.flags(), "--train_twins_csv", str(tmp_path / "twins.csv"), "--output_dir", str(out)]
    assert main([*flags, "--epochs", "1", "--batch_size", "4", "--select_on", "holdout", "--holdout_videos", "3"]) == 0
    assert "training split: 4 videos" in (out / "log.txt").read_text()


def test_a_frame_cache_that_cannot_be_written(small_data, tmp_path, capsys):
    (tmp_path / "file").touch()
    flags = ["--do_eval", *small_data.flags(), "--output_dir", str(tmp_path / "run"), "--frame_cache"]
    assert "file is a file: name a folder" in error_of([*flags, str(tmp_path / "file")], capsys)
    assert "cannot be written to" in error_of([*flags, "/proc/no/cache"], capsys)


def test_csv_without_the_column(own_data, tmp_path, capsys):
    (own_data.folder / "MSRVTT_JSFUSION_test.csv").write_text("key,video\nret0,video4\n")
    message = error_of(["--do_eval", *own_data.flags(), "--output_dir", str(tmp_path / "run")], capsys)
    assert "no column" in message
    assert "MSRVTT_JSFUSION_test.csv" in message


def test_weights_of_the_wrong_kind(small_data, tmp_path, capsys):
    wrong = tmp_path / "weights.pt"
    wrong.write_text("not weights")
    flags = [*small_data.flags(), "--output_dir", str(tmp_path / "run"), "--pretrained_clip_name", str(wrong)]
    assert "weights.pt" in error_of(["--do_eval", *flags], capsys)
    checkpoint = tmp_path / "missing.safetensors"
    flags = [*small_data.flags(), "--output_dir", str(tmp_path / "run"), "--init_model", str(checkpoint)]
    assert "missing.safetensors: no such checkpoint" in error_of(["--do_eval", *flags], capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_frames", "0"], "--max_frames 0"),
        (["--frames", "3"], "unknown argument --frames"),
        (["--batch_size", "1000"], "batch"),
        (["--max_words", "40"], "16"),  # the tiny CLIP reads 16 tokens
    ],
)
def test_wrong_flags_are_named(small_data, tmp_path, flags, message, capsys):
    arguments = ["--do_train", *small_data.flags(), "--output_dir", str(tmp_path / "run"), *flags]
    assert message in error_of(arguments, capsys)


def test_diverged_loss_names_its_videos(small_data, tmp_path, capsys):
    flags = [*small_data.flags(), "--output_dir", str(tmp_path / "run"), "--epochs", "3", "--batch_size", "4"]
    message = error_of(["--do_train", *flags, "--lr", "1e30", "--coef_lr", "1", "--weight_decay", "0"], capsys)
    assert "the loss is nan in step" in message
    assert "video" in message


def test_diverged_loss_stops_fp16_too(small_data, tmp_path, monkeypatch, capsys):
    diverged = lambda self, logits, videos=None: logits.sum() * float("inf")  # noqa: E731
    monkeypatch.setattr("modules.losses.SymmetricInfoNCE.forward", diverged)
    flags = [*small_data.flags(), "--output_dir", str(tmp_path), "--batch_size", "4", "--precision", "fp16"]
    assert "in step 0 on process 0" in (message := error_of(["--do_train", *flags], capsys))
    assert "pass --precision fp32" in message


def run_in_processes(n: int, arguments: list[str]) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, str(ROOT / "main_task_retrieval.py"), *arguments],
        capture_output=True, text=True, env=environment, timeout=240, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_batch_size_that_is_not_divisible_is_refused(small_data, tmp_path):
    flags = [*small_data.flags(), "--output_dir", str(tmp_path), "--batch_size", "5"]
    done = run_in_processes(2, ["--do_train", *flags])
    assert done.returncode != 0
    assert "--batch_size 5 is global and is not divisible by the 2 processes" in done.stderr
