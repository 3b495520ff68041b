"""Action recognition with a trained checkpoint or with none; what a training has seen is not tested."""

import csv
import json
import shutil

import numpy as np
import pytest

from engine.tasks.predictions import read_predictions
from main_task_recognition import main
from main_task_retrieval import main as retrieval
from tests.action_runs import STOP_FLAGS, class_text_training, evaluation, succeed, training
from tests.training_runs import lines_of
from tools.report import main as report


@pytest.fixture(scope="module")
def trained(small_actions, tmp_path_factory):
    """Return the folder of a training with class texts; tests only read it."""
    return class_text_training(small_actions, tmp_path_factory.mktemp("trained"))


def test_checkpoints_go_both_ways(small_actions, small_data, trained, tmp_path):
    """A checkpoint of retrieval classifies, and one of recognition retrieves, without training."""
    files = [flag for flag in small_data.flags() if flag != "--expand_msrvtt_sentences"]
    own = [*STOP_FLAGS, "--epochs", "1", "--batch_size", "4"]
    assert retrieval(["--do_train", *files, *own, "--output_dir", str(tmp_path / "retrieval")]) == 0
    weights = tmp_path / "retrieval" / "last.safetensors"
    succeed(evaluation(small_actions, tmp_path / "a", "--init_model", str(weights)))
    assert "top1" in lines_of(tmp_path / "a", "test")[0]
    output = ["--output_dir", str(tmp_path / "b")]
    assert retrieval(["--do_eval", *files, "--init_model", str(trained / "last.safetensors"), *output]) == 0
    assert "t2v R@1" in lines_of(tmp_path / "b", "test")[0]
    for name in ("a", "b"):
        settings = json.loads((tmp_path / name / "config.json").read_text())
        assert (settings["method"], settings["n_regions"]) == ("stop", 2)


def lists_of_split_2(small_actions, folder):
    """Write the lists once more, those of split 1 also as those of split 2; return their folder."""
    lists = shutil.copytree(small_actions.lists, folder / "lists")
    for kind in ("train", "test"):
        shutil.copy(lists / f"{kind}list01.txt", lists / f"{kind}list02.txt")
    return lists


def test_a_checkpoint_is_evaluated_on_another_data_set(small_actions, tmp_path):
    """Zero-shot: the split, shots, lists and texts of the training's data set do not go with it."""
    out, videos = tmp_path / "run", tmp_path / "videos"
    few = ["--classes", "base", "--shots", "4", "--templates", "the action {}", "--batch_size", "8"]
    lists = lists_of_split_2(small_actions, tmp_path)
    succeed(training(small_actions, out, *few, "--split", "2", "--data_path", str(lists)))
    for name in ("ShowRed", "ShowGreen"):
        (videos / "test").mkdir(parents=True, exist_ok=True)
        (videos / "test" / name).symlink_to(small_actions.videos / name)
    weights = ["--init_model", str(out / "last.safetensors"), "--num_thread_reader", "0"]
    other = ["--datatype", "custom", "--features_path", str(videos), "--output_dir", str(tmp_path / "other")]
    succeed(["--do_eval", *weights, *other])
    settings = json.loads((tmp_path / "other" / "config.json").read_text())
    names = ("classes", "shots", "split", "templates", "data_path")
    assert tuple(settings[name] for name in names) == ("all", 0, 1, "", "")
    assert (settings["method"], settings["frame_sampling"]) == ("stop", "segment")
    predictions = read_predictions(tmp_path / "other" / "predictions.npz")
    assert sorted(predictions.keys) == ["ShowGreen", "ShowRed"]
    assert len(predictions.ids) == 22


def test_an_evaluation_in_the_folder_of_a_training_keeps_its_predictions(small_actions, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    before = (run / "predictions.npz").read_bytes()
    weights = ["--init_model", str(run / "last.safetensors"), "--test_views", "2x1"]
    for folder, file in ((run, run / "eval"), (tmp_path / "own", tmp_path / "own"), (tmp_path / "own",) * 2):
        succeed(evaluation(small_actions, folder, *weights))
        assert read_predictions(file / "predictions.npz").n_views == 2
    assert (run / "predictions.npz").read_bytes() == before
    assert not (tmp_path / "own" / "eval").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "2"], "was trained on --split 1 of ucf101, whose training list has test videos of --split 2"),
        (["--classes", "novel"], "was trained with --classes all, so the novel classes of ucf101 are not new to it"),
        (["--classes", "base"], "was trained with --classes all, so the novel classes of ucf101 are not new to it"),
    ],
)
def test_what_a_checkpoint_was_trained_on_is_not_tested(small_actions, trained, tmp_path, capsys, flags, message):
    weights = ["--init_model", str(trained / "last.safetensors")]
    assert main(evaluation(small_actions, tmp_path / "run", *weights, *flags)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_training_does_not_start_from_another_split(small_actions, trained, tmp_path, capsys):
    other = ["--split", "2", "--data_path", str(lists_of_split_2(small_actions, tmp_path))]
    start = ["--init_model", str(trained / "last.safetensors")]
    assert main(training(small_actions, tmp_path / "run", *start, *other)) == 2
    assert "was trained on --split 1 of ucf101" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_a_checkpoint_was_trained_on_is_tested_on_request(small_actions, trained, tmp_path):
    weights = ["--init_model", str(trained / "last.safetensors"), "--classes", "novel", "--allow_overlap"]
    succeed(evaluation(small_actions, tmp_path, *weights))
    assert "attention: --init_model" in (tmp_path / "log.txt").read_text()


def test_lists_with_clips_of_one_group_are_used_on_request(small_actions, tmp_path, capsys):
    lists = shutil.copytree(small_actions.lists, tmp_path / "lists")
    test = (lists / "testlist01.txt").read_text()
    lines = (lists / "trainlist01.txt").read_text().splitlines(keepends=True)
    (lists / "testlist01.txt").write_text(test + lines[0].split()[0] + "\n")
    (lists / "trainlist01.txt").write_text("".join(lines[1:]))  # which has the other clip of that group
    argv = training(small_actions, tmp_path / "run", "--data_path", str(lists))
    assert main(argv) == 2
    assert "1 of the 13 test videos are of a group with training videos" in capsys.readouterr().err
    succeed([*argv, "--allow_overlap"])
    assert "attention: 1 of the 13 test videos are of a group" in (tmp_path / "run" / "log.txt").read_text()


def test_the_columns_of_a_row_do_not_depend_on_the_test_videos(small_actions, trained, tmp_path, capsys):
    """There are pairs of classes, but no test video of one: the column stays, without a number."""
    lists, results = shutil.copytree(small_actions.lists, tmp_path / "lists"), tmp_path / "results.csv"
    test_list = lists / "testlist01.txt"
    test_list.write_text("".join(f"{line}\n" for line in test_list.read_text().split() if line.startswith("Show")))
    more = ["--results_csv", str(results)]
    weights = ["--init_model", str(trained / "last.safetensors"), "--flip", "plain_despite_map"]
    succeed(evaluation(small_actions, tmp_path / "all", *more, *weights))
    succeed(evaluation(small_actions, tmp_path / "few", *more, "--method", "clip4clip", "--data_path", str(lists)))
    full, few = csv.DictReader(results.open())
    assert (few["direction"], few["videos"]) == ("nan", "6")
    of_training = ("start", "train_data", "shots", "flip")
    assert [full[name] for name in of_training] == ["CLIP", "ucf101", "all", "none"]  # of the checkpoint's training
    assert [few[name] for name in of_training] == ["CLIP", "", "none", ""]  # nothing was trained
    capsys.readouterr()
    assert report([str(results)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split("|")[-3].strip() == "-"


def test_zero_shot_with_several_templates(small_actions, tmp_path):
    templates = tmp_path / "templates.txt"
    templates.write_text("a video of a person {}.\n{}\nthe action {}\n")
    results = ["--results_csv", str(tmp_path / "results.csv")]
    for name, more in (
        ("one", ["--templates", "{}"]),
        ("three", ["--templates", str(templates), "--test_views", "2x3", "--view_fusion", "features", *results]),
    ):
        succeed(evaluation(small_actions, tmp_path / name, "--method", "clip4clip", *more))
        assert lines_of(tmp_path / name, "test")[0]["selection"] == "zero-shot"
    row = next(csv.DictReader((tmp_path / "results.csv").open()))
    assert row["class_texts"] == f"3 of {templates} (split)"
    one, three = (read_predictions(tmp_path / name / "predictions.npz") for name in ("one", "three"))
    assert three.views.shape == (12, 6, 4)
    assert not np.allclose(three.views[:, 2], one.views[:, 0])
