"""The benchmark of moments, on a small made world with a small STOP."""

import json

import numpy as np
import pytest

from benchmarks.search_moments import main, measure_twins, overlap
from main_task_retrieval import main as train
from preprocess.make_moving_shapes import main as make

WINDOW = 4.0  # seconds of a clip


def test_overlaps():
    windows = np.array([[0, 4], [2, 6], [4, 8], [3, 5], [0, 8]])
    assert overlap(windows, np.array([2, 6])).tolist() == pytest.approx([1 / 3, 1, 1 / 3, 0.5, 0.5])
    assert overlap(windows, np.array([9, 10])).tolist() == [0] * 5


def test_twins_count_half_where_they_are_equal():
    scores = np.array([[0.5, 0.4, 0.9], [0.7, 0.7, 0.9], [0.1, 0.9, 0.3]])
    found = measure_twins(scores, np.array([1, 0, -1]))
    assert found == {"captions": 2, "above": 1, "equal": 1, "below": 0, "accuracy": 75.0}


@pytest.fixture(scope="module")
def measured(small_data, tmp_path_factory):
    """Return what the benchmark writes for a STOP that was trained for an epoch, and the metrics of its run."""
    folder = tmp_path_factory.mktemp("moments")
    world = folder / "world"
    assert make(["--output_dir", str(world), "--train_pairs", "4", "--test_pairs", "6", "--image_size", "32"]) == 0
    lists = ["--train_csv", str(world / "MSRVTT_train.csv"), "--val_csv", str(world / "MSRVTT_JSFUSION_test.csv")]
    flags = [*lists, "--data_path", str(world / "MSRVTT_data.json"), "--features_path", str(world / "videos")]
    flags += ["--pretrained_clip_name", str(small_data.clip), "--max_frames", "4", "--max_words", "16", "--lr", "0.05"]
    flags += ["--method", "stop", "--batch_size", "4", "--epochs", "1", "--num_thread_reader", "0"]
    flags += ["--frame_sampling", "segment", "--feature_framerate", "0", "--expand_msrvtt_sentences"]
    flags += ["--twins_csv", str(world / "twins.csv")]
    assert train(["--do_train", *flags, "--output_dir", str(folder / "run")]) == 0
    flags = ["--checkpoint", str(folder / "run" / "last.safetensors"), "--data", str(world)]
    flags += ["--pretrained_clip_name", str(small_data.clip), "--output", str(folder / "moments.json")]
    flags += ["--strides", "1,0.25"]
    assert main(flags) == 0
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return json.loads((folder / "moments.json").read_text()), next(line for line in lines if "t2v R@1" in line)


@pytest.mark.slow
def test_the_index_of_files_finds_what_the_evaluation_finds(measured):
    found, evaluated = measured
    files = found["files"]
    assert files["equal"] or files["ranks_changed_by_fp16"]
    assert files["queries"] == 12
    assert found["trained_with"]["lr"] == 0.05
    for source in ("fp32", "evaluation"):
        assert {name: files[source][name] for name in files["index"]} == {
            name: evaluated[name] for name in files["index"]
        }
    assert files["index"]["t2v MnR"] > 1  # something had to be ranked
    assert 0 < files["largest_difference_of_a_score"] < 1e-3


@pytest.mark.slow
def test_moments_of_the_long_file(measured):
    rows = measured[0]["moments"]
    assert [(row["longest_pause"], row["stride"]) for row in rows] == [
        (pause, stride) for pause in (0, WINDOW) for stride in (WINDOW, WINDOW / 4)
    ]
    assert [row["windows"] for row in rows[:2]] == [12, 45]
    for row in rows:
        assert row["clips"] == 12
        assert row["R@1"] <= row["R@5"] <= row["possible"]
        assert row["R@1 best window"] <= row["R@5 best window"]
        assert 0 <= row["iou"] <= row["best_iou"]
    # Without pauses, the windows of the first stride are the clips, with the same pixels.
    exact = rows[0]
    assert (exact["best_iou"], exact["possible"]) == (1, 100)
    found = measured[0]["files"]["index"]
    assert (exact["R@1"], exact["R@5"]) == pytest.approx((found["t2v R@1"], found["t2v R@5"]), abs=1e-3)
    with_pauses = [row["best_iou"] for row in rows[2:]]
    assert with_pauses == sorted(with_pauses)
    assert with_pauses[0] < with_pauses[-1] < 1


@pytest.mark.slow
def test_twins_of_the_model_and_of_a_frame_index(measured):
    found, evaluated = measured
    for row in found["twins"].values():
        assert row["captions"] == row["above"] + row["equal"] + row["below"] == 12
    assert found["twins"]["checkpoint"]["accuracy"] == pytest.approx(evaluated["t2v twins"], abs=1e-3)
    assert len(found["twins"]) == 3


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ([], "--checkpoint is missing"),
        (["--checkpoint", "x", "--data", "nowhere"], "nowhere"),
        (["--strides", "0,1"], "--strides '0,1' is no list of numbers"),
        (["--pauses", "x"], "--pauses 'x' is no list of numbers"),
    ],
)
def test_mistakes(flags, part, capsys):
    assert main([*flags, "--output="]) == 2
    assert part in capsys.readouterr().err
