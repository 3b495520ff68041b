"""Data sets with several captions per video, or with time windows, run from their own files to the metrics."""

import json
import pickle
from pathlib import Path

import pytest

from main_task_retrieval import main
from tests.small_data import SmallData

TRAIN, TEST = [f"video{n}" for n in range(4)], [f"video{n}" for n in range(4, 7)]


@pytest.fixture
def flags(small_data: SmallData, tmp_path: Path) -> list[str]:
    """Return flags that suit the size of the data, with a tiny CLIP and an output folder `run`."""
    return [
        "--pretrained_clip_name", str(small_data.clip), "--output_dir", str(tmp_path / "run"), "--precision", "fp32",
        "--max_frames", "3", "--max_words", "12", "--num_thread_reader", "0", "--feature_framerate", "0",
        "--epochs", "1", "--batch_size", "4",
    ]  # fmt: skip


def last_metrics(folder: Path) -> dict:
    return json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("expand", [True, False])
def test_msvd_with_all_its_captions(small_data, tmp_path, flags, expand):
    (tmp_path / "train_list.txt").write_text("\n".join(TRAIN))
    (tmp_path / "test_list.txt").write_text("\n".join(TEST))
    captions = {
        name: [["a", "film", str(n)], [name], ["it", "moves"]][: 2 + n % 2] for n, name in enumerate(TRAIN + TEST)
    }
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(captions, protocol=2))
    flags += ["--datatype", "msvd", "--data_path", str(tmp_path), "--features_path", str(small_data.videos)]
    assert main(["--do_train", *flags, *(["--expand_msrvtt_sentences"] if expand else [])]) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"training split: 4 videos, {10 if expand else 4} pairs" in log
    assert "test split: 3 videos, 7 captions" in log
    assert "test_list.txt gives 3 videos, the published split has 670" in log
    assert 0 <= last_metrics(tmp_path)["t2v R@1"] <= 100


def test_didemo_with_one_paragraph_per_video(small_data, tmp_path, flags):
    for split, names in (("train", TRAIN), ("test", TEST)):
        (tmp_path / f"{split}_list.txt").write_text("\n".join(names))
        moments = [
            {"video": name, "description": text, "times": [[0, 1]]} for name in names for text in (name, "it moves")
        ]
        (tmp_path / f"{split}_data.json").write_text(json.dumps(moments))
    flags += ["--datatype", "didemo", "--data_path", str(tmp_path), "--features_path", str(small_data.videos)]
    assert main(["--do_train", *flags]) == 0
    assert "test split: 3 videos, 3 captions" in (tmp_path / "run" / "log.txt").read_text()


def test_a_window_outside_its_file_is_named(small_data, tmp_path, flags, capsys):
    path = tmp_path / "list.csv"
    path.write_text("path,caption,start,end\nvideo0.mp4,one,0,0.7\nvideo0.mp4,two,0.7,\nvideo1.mp4,three,,\n")
    flags += ["--datatype", "custom", "--val_csv", str(path), "--features_path", str(small_data.videos)]
    assert main(["--do_eval", *flags]) == 0
    assert "test split: 3 videos, 3 captions" in (tmp_path / "run" / "log.txt").read_text()
    path.write_text("path,caption,start,end\nvideo0.mp4,one,8,9\nvideo1.mp4,two,,\n")
    assert main(["--do_eval", *flags]) == 2
    message = capsys.readouterr().err
    assert "video0.mp4 has no frame from 8 s until 9 s" in message
    assert message.count("\n") == 1
