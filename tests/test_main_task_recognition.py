"""Training action recognition from the command line, on real small mp4 files in UCF101's layout."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine import run as engine_run
from engine.checkpoint import read_header
from engine.tasks.classification import ClassificationStep
from engine.tasks.predictions import read_predictions
from engine.tasks.recognition import topk_accuracy
from main_task_recognition import main
from modules.methods import STOP, VPT
from tests.action_runs import STOP_FLAGS, class_text_training, evaluation, losses, succeed, training
from tests.processes import run_as_group
from tests.small_actions import CLASSES
from tests.training_runs import interrupt_after, lines_of


@pytest.fixture(scope="module")
def trained(small_actions, tmp_path_factory):
    """Return the folder of a training with class texts; tests only read it."""
    return class_text_training(small_actions, tmp_path_factory.mktemp("trained"))


def test_it_trains_selects_evaluates_and_writes_its_files(small_actions, tmp_path):
    out, results = tmp_path / "run", tmp_path / "results.csv"
    more = ["--epochs", "2", "--select_on", "holdout", "--holdout_videos", "4", "--results_csv", str(results)]
    more += ["--test_views", "3x1", "--view_fusion", "softmax", "--shots", "6", "--flip", "mapped", "--batch_size", "4"]
    more += ["--label_smoothing", "0.1", "--crop_scale", "0.8"]
    succeed(training(small_actions, out, *more))
    curve = losses(out)
    assert sum(curve[-3:]) < sum(curve[:3])
    (test,) = lines_of(out, "test")
    assert {"top1", "top5", "mean_class", "direction", "selection"} <= test.keys()
    assert len(lines_of(out, "holdout")) == 2
    log = (out / "log.txt").read_text()
    assert "training split: 19 videos, 19 clips" in log  # of 24; whole groups are held out, until there are 4 videos
    assert "4 texts of 4 classes, such as 'a video of a person move left.'; 0 lose words" in log

    row = next(csv.DictReader(results.open()))
    expected = {
        "data": "ucf101", "split": "1", "list": "", "classes": "all", "start": "CLIP", "train_data": "ucf101",
        "train_list": "", "shots": "6", "shots_seed": "0", "flip": "mapped", "classifier": "text",
        "class_texts": "a video of a person {}. (split)", "views": "3x1", "view_fusion": "softmax", "videos": "12",
        "selection": "best epoch on held-out training videos", "top1": str(test["top1"]),
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert read_header(out / "best.safetensors").task == "recognition"

    predictions = read_predictions(out / "predictions.csv")
    assert predictions.keys == CLASSES
    assert predictions.views.shape == (12, 3, 4)
    assert topk_accuracy(predictions.scores(), predictions.labels, 1) == pytest.approx(test["top1"], abs=1e-3)
    each = [topk_accuracy(predictions.views[:, view], predictions.labels, 1) for view in range(3)]
    assert test["top1 of each view"] == pytest.approx(each, abs=1e-3)
    assert "top-1 of each of 3x1 views alone" in log
    assert (out / "confusion.npz").is_file()

    # The checkpoint alone gives the numbers again, with its own data set, texts and views given anew.
    weights = ["--init_model", str(out / "best.safetensors"), "--test_views", "3x1", "--view_fusion", "softmax"]
    succeed(evaluation(small_actions, tmp_path / "again", *weights))
    again = read_predictions(tmp_path / "again" / "predictions.npz")
    np.testing.assert_allclose(again.views, predictions.views, atol=1e-5)


def test_parts_and_processes_change_nothing(small_actions, trained, tmp_path):
    run_as_group(3, succeed, training(small_actions, tmp_path / "three", "--gradient_accumulation_steps", "2"))
    curve = losses(trained)
    assert len(set(curve)) == len(curve) == 2
    weights = load_file(trained / "last.safetensors")
    (expected,) = lines_of(trained, "test")
    assert losses(tmp_path / "three") == pytest.approx(curve, abs=1e-5)
    for name, tensor in load_file(tmp_path / "three" / "last.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n} {m}")
    for count in (2, 3):
        run_as_group(
            count, succeed,
            evaluation(small_actions, tmp_path / f"of {count}", "--init_model", str(trained / "last.safetensors")),
        )  # fmt: skip
        (found,) = lines_of(tmp_path / f"of {count}", "test")
        assert {name: found[name] for name in ("top1", "top5", "mean_class", "direction")} == {
            name: expected[name] for name in ("top1", "top5", "mean_class", "direction")
        }


def test_it_resumes_to_the_bit(small_actions, tmp_path, monkeypatch, capsys):
    more = ["--prompt_dropout", "0.2", "--batch_size", "8", "--mixup_alpha", "1", "--gradient_accumulation_steps", "2"]
    more += ["--flip", "mapped"]
    succeed(training(small_actions, tmp_path / "whole", *more))
    with monkeypatch.context() as patched:
        interrupt_after(patched, 2)
        assert main(training(small_actions, tmp_path / "cut", *more)) == engine_run.EXIT_INTERRUPTED
    resume = training(small_actions, tmp_path / "cut", *more, "--resume", "auto")
    shutil.copytree(small_actions.lists, tmp_path / "lists")
    (tmp_path / "lists" / "flip_map.csv").unlink()
    for name, *other in (
        ("label_smoothing", "--label_smoothing", "0.1"),
        ("mirrored clips", "--data_path", tmp_path / "lists"),
    ):
        assert main([*resume, *map(str, other)]) == 2
        assert f"{name} is " in capsys.readouterr().err
    succeed(resume)
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize(("method", "texts"), [(VPT, 4), (STOP, 4 * (3 + 1))])
def test_class_texts_of_a_run_are_encoded_once_or_once_a_step(small_actions, tmp_path, monkeypatch, method, texts):
    """Count texts over 3 steps in 2 parts and an evaluation; a learned text side needs one more for the evaluation."""
    encoded = []
    encode = method.encode_text

    def counted(self, token_ids):
        if len(token_ids) > 1:  # not the single one that tells whether texts learn
            encoded.append(len(token_ids))
        return encode(self, token_ids)

    monkeypatch.setattr(method, "encode_text", counted)
    own = ["--method", "vpt", "--text_prompt_length", "0"] if method is VPT else []
    without = [flag for flag in STOP_FLAGS if not own or flag not in ("--n_regions", "2", "--prompt_dropout", "0")]
    flags = [*small_actions.flags(), "--epochs", "1", "--batch_size", "10", *without, *own]
    succeed(["--do_train", *flags, "--gradient_accumulation_steps", "2", "--output_dir", str(tmp_path)])
    assert sum(encoded) == texts


def test_a_linear_head(small_actions, trained, tmp_path, capsys):
    linear, out = ["--classifier", "linear"], tmp_path / "run"
    succeed(evaluation(small_actions, tmp_path / "untrained", *linear))
    (line,) = lines_of(tmp_path / "untrained", "test")
    assert line["selection"] == "untrained"
    assert "the head is random" in (tmp_path / "untrained" / "log.txt").read_text()

    succeed(training(small_actions, out, *linear))
    tensors = load_file(out / "last.safetensors")
    assert tensors["loss.head.weight"].shape == (4, 24)
    assert not any("text" in name for name in tensors)
    weights = ["--init_model", str(out / "last.safetensors")]
    succeed(evaluation(small_actions, tmp_path / "again", *weights))
    first, second = (read_predictions(folder / "predictions.npz") for folder in (out, tmp_path / "again"))
    np.testing.assert_allclose(second.views, first.views, atol=1e-5)
    assert lines_of(tmp_path / "again", "test")[0]["selection"] == "checkpoint as given"

    # A checkpoint with a head has no trained texts.
    assert main(evaluation(small_actions, tmp_path / "bad", *weights, "--classifier", "text")) == 2
    assert "was trained with --classifier linear, which trains no texts" in capsys.readouterr().err

    # A checkpoint with texts has no head to evaluate, but training may start from it.
    start = ["--init_model", str(trained / "last.safetensors"), *linear]
    assert main(evaluation(small_actions, tmp_path / "bad", *start)) == 2
    assert "has no linear head for these 4 classes" in capsys.readouterr().err
    succeed(training(small_actions, tmp_path / "goes on", *start))
    assert load_file(tmp_path / "goes on" / "last.safetensors").keys() == tensors.keys()

    # It has rows for its own classes only, in their order.
    other = tmp_path / "other"
    shutil.copytree(small_actions.lists, other)
    (other / "classInd.txt").write_text("".join(f"{n} {name}\n" for n, name in enumerate(reversed(CLASSES), 1)))
    assert main(evaluation(small_actions, tmp_path / "bad", *weights, "--data_path", str(other))) == 2
    assert "has no linear head for these 4 classes in their order" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()
    lines = (other / "trainlist01.txt").read_text().splitlines()
    (other / "trainlist01.txt").write_text("\n".join(line.split()[0] for line in lines))
    succeed(training(small_actions, tmp_path / "anew", *linear, *weights, "--data_path", str(other)))
    assert "is of other classes than these: a new one is trained" in (tmp_path / "anew" / "log.txt").read_text()


def test_a_linear_probe_of_one_frame(small_actions, tmp_path):
    """Nothing is trained but the head."""
    nothing = ["--no-use_intra", "--no-use_inter", "--n_regions", "6", "--text_prompt_length", "0", "--max_frames", "1"]
    assert main(training(small_actions, tmp_path / "text", *nothing)) == 2
    succeed(training(small_actions, tmp_path / "linear", *nothing, "--classifier", "linear"))
    assert set(load_file(tmp_path / "linear" / "last.safetensors")) == {
        "loss.head.weight", "loss.head.bias", "loss.classes",
    }  # fmt: skip
    curve = losses(tmp_path / "linear")
    assert curve[-1] < curve[0]


def test_a_single_class_is_refused(small_actions, tmp_path, capsys):
    """As when --features_path is one folder too high: every answer would be right."""
    one = tmp_path / "one.txt"
    one.write_text("ShowRed\n")
    assert main(training(small_actions, tmp_path / "run", "--classes", str(one))) == 2
    assert "there is only one class, ShowRed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_base_to_novel(small_actions, tmp_path):
    out, results = tmp_path / "run", tmp_path / "results.csv"
    succeed(training(small_actions, out, "--classes", "base", "--results_csv", str(results), "--batch_size", "8"))
    (line,) = lines_of(out, "test")
    base, novel = line["top1"], line["novel top1"]
    assert line["HM"] == pytest.approx(2 * base * novel / (base + novel) if base and novel else 0, abs=2e-3)
    row = next(csv.DictReader(results.open()))
    assert (row["classes"], row["HM"]) == ("base", str(line["HM"]))
    assert read_predictions(out / "predictions.npz").keys == ("MoveLeft", "ShowRed")
    assert read_predictions(out / "novel" / "predictions.npz").keys == ("MoveRight", "ShowGreen")
    log = (out / "log.txt").read_text()
    assert "training split: 16 videos" in log
    assert "novel split: 6 of 12 videos are of the 2 classes" in log
    assert "novel split: 6 videos of 2 of 2 classes" in log
    succeed(
        evaluation(
            small_actions, tmp_path / "novel", "--init_model", str(out / "last.safetensors"), "--classes", "novel"
        )
    )
    (alone,) = lines_of(tmp_path / "novel", "test")
    assert alone["top1"] == novel


@pytest.fixture
def twins_csv(tmp_path):
    """Return a csv in which a training clip of MoveLeft and the one of MoveRight with the same number are a pair."""
    names = [f"g{group:02}_c{clip:02}" for group in range(8, 12) for clip in (1, 2)]
    pairs = "".join(f"v_MoveLeft_{name},v_MoveRight_{name}\n" for name in names)
    (tmp_path / "train_twins.csv").write_text("video_id,twin_id\n" + pairs)
    return tmp_path / "train_twins.csv"


def batches(monkeypatch) -> list[list[int]]:
    """Return a list that gets the labels of the training batches to come."""
    seen: list[list[int]] = []
    forward = ClassificationStep.forward

    def record(self, video, frame_mask, label, *rest):
        seen.append(label.tolist())
        return forward(self, video, frame_mask, label, *rest)

    monkeypatch.setattr(ClassificationStep, "forward", record)
    return seen


def test_twins_share_a_batch(small_actions, tmp_path, twins_csv, monkeypatch):
    """Batches of 8 have as many clips of MoveLeft as of MoveRight, with some clips of each class in the epoch."""
    seen = batches(monkeypatch)
    few = ["--batch_size", "8", "--epochs", "2", "--train_twins_csv", str(twins_csv)]
    succeed(training(small_actions, tmp_path / "run", *few))
    moving = [label for labels in seen for label in labels if label < 2]
    assert len(seen) == 8
    assert len(moving) == 32
    together = sum(labels[i : i + 2] in ([0, 1], [1, 0]) for labels in seen for i in range(7))
    assert together >= 14, "but for pairs that the end of a batch separates, a clip is followed by its twin"


def test_twins_that_are_not_drawn_do_not_count(small_actions, tmp_path, twins_csv):
    succeed(training(small_actions, tmp_path / "run", "--shots", "3", "--train_twins_csv", str(twins_csv)))


def test_a_run_with_other_twins_is_not_resumed(small_actions, tmp_path, twins_csv, capsys):
    flags = training(small_actions, tmp_path / "run", "--train_twins_csv", str(twins_csv))
    succeed([*flags, "--epochs", "2"])
    twins_csv.write_text("video_id,twin_id\nv_MoveLeft_g08_c01,v_MoveRight_g09_c01\n")
    assert main([*flags, "--epochs", "2", "--resume", "auto"]) == 2
    assert "training twins" in capsys.readouterr().err


REFUSED = [
    (["--classes", "novel"], "--classes novel is for an evaluation without training"),
    (["--classes", "base", "--classifier", "linear"], "--classifier linear has no row for a class"),
    (["--classes", "nowhere.txt"], "nowhere.txt"),
    (["--test_views", "3"], "--test_views"),
    (["--templates", "a person"], "--templates 'a person' is no file"),
    (["--class_names", "nowhere.csv"], "nowhere.csv"),
    (["--shots", "9"], "--shots 9"),
    (["--flip", "plain"], "--flip plain would mislabel clips"),
    (["--max_words", "3"], "classes read alike at --max_words 3"),
    (["--mixup_alpha", "1", "--batch_size", "9"], "mix pairs of clips"),
    (["--holdout_videos", "40", "--select_on", "holdout"], "--holdout_videos 40"),
    (["--split", "2"], "testlist02.txt"),
    (["--data_path", ""], "--data_path"),
    (["--select_on", "val"], "ucf101 has no validation split"),
    (["--view_fusion", "max"], "--view_fusion 'max' is not one of"),
    (["--class_names", "splt"], "pass split, raw or a csv file"),
    (["--train_twins_csv", "nowhere.csv"], "--train_twins_csv nowhere.csv"),
]


@pytest.mark.parametrize(
    ("flags", "message"), REFUSED, ids=lambda value: " ".join(value) if type(value) is list else ""
)
def test_mistakes_get_one_sentence_before_anything_is_written(small_actions, tmp_path, capsys, flags, message):
    assert main(training(small_actions, tmp_path / "run", *flags)) == 2
    error = capsys.readouterr().err.rpartition("error: ")[2]
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_describe_counts_a_head(small_actions, capsys):
    flags = ["--describe", *small_actions.flags(), "--method", "vpt"]
    assert main([*flags, "--classifier", "linear"]) == 0
    assert json.loads(capsys.readouterr().out)["loss_parameters"] == {"head.weight": 96, "head.bias": 4}
