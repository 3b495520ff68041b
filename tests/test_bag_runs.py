"""Action recognition with a bag of prompts from the command line, on real small mp4 files in UCF101's layout."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dataloaders.datasets import ViewedVideos
from dataloaders.views import Views
from engine import run as engine_run
from engine.checkpoint import load_checkpoint
from engine.data import normalise_for
from engine.tasks.predictions import read_predictions
from engine.tasks.recognition_metrics import fuse
from main_task_recognition import main
from main_task_retrieval import main as retrieval
from modules.bag import bag_scores, make_bag
from modules.clip_weights import backbone_sha256, load_clip, to_openai_keys
from tests.engine.tasks.test_recognition import a_task
from tests.small_actions import CLASSES
from tests.small_bags import some_features, write_bag
from tests.tiny import tiny_clip
from tests.training_runs import interrupt_after, lines_of
from tests.training_runs import training as retrieval_training

ORDER = (2, 0, 3, 1)  # of the classes in the file


@pytest.fixture(scope="module")
def bag_file(small_actions, tmp_path_factory):
    path = tmp_path_factory.mktemp("bags") / "bag.safetensors"
    write_bag(path, load_clip(small_actions.clip), tuple(CLASSES[number] for number in ORDER))
    return path


@pytest.fixture
def flags(small_actions, bag_file):
    return [*small_actions.flags(), "--classifier", "bag", "--text_features", str(bag_file)]


TRAIN = ["--do_train", "--epochs", "1", "--batch_size", "12", "--lr", "1e-3", "--coef_lr", "0.1"]


@pytest.fixture(scope="module")
def trained(small_actions, bag_file, tmp_path_factory):
    """Return the folder of a training with a bag; tests only read it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    more = ["--classifier", "bag", "--text_features", str(bag_file), "--bag_mean", "masked"]
    more += ["--results_csv", str(out.parent / "results.csv")]
    assert main([*TRAIN, *small_actions.flags(), *more, "--output_dir", str(out)]) == 0
    return out


def weights_of(folder) -> list[str]:
    return ["--init_model", str(folder / "last.safetensors")]


def test_training_writes_what_it_used(trained, bag_file):
    tensors = load_file(trained / "last.safetensors")
    assert "clip.logit_scale" in tensors
    assert not any("text" in name for name in tensors)
    row = next(csv.DictReader((trained.parent / "results.csv").open()))
    assert (row["classifier"], row["class_texts"]) == ("bag", "bag bag.safetensors (xmix, masked mean)")
    log = (trained / "log.txt").read_text()
    assert f"--text_features {bag_file}: 3 prompts of each of 4 classes, 3 of all are repeats that do not count" in log
    first, last = (lines_of(trained, "train")[number]["logit_scale"] for number in (0, -1))
    assert first != last


@pytest.mark.parametrize("fusion", ["softmax", "features"])
def test_an_evaluation_by_a_plain_loop(small_actions, bag_file, trained, flags, tmp_path, fusion):
    """Its rows are those of the classes by name, and its views are fused before or after the scores."""
    more = ["--do_eval", *weights_of(trained), "--bag_mean", "masked", "--test_views", "2x1", "--view_fusion", fusion]
    assert main([*flags, *more, "--output_dir", str(tmp_path)]) == 0
    found = read_predictions(tmp_path / "predictions.npz").scores()

    task = a_task(small_actions, tmp_path / "task")
    method = task.method.eval()
    only_texts = {name for name, _ in method.trainable_parameters() if "text" in name}
    task._step.loss.unused = frozenset(only_texts)
    load_checkpoint(
        trained / "last.safetensors", method, backbone_sha256(load_clip(small_actions.clip)), task._step.loss
    )
    features = some_features(4)[np.argsort(ORDER)]
    prompts = [features[k, : 3 if CLASSES[k] == CLASSES[ORDER[0]] else 2] for k in range(4)]
    one = torch.ones(1, 1, dtype=torch.bool)
    samples = task.splits.read("test")
    videos, scale = (
        ViewedVideos(samples, task.splits.frame_reader(training=False), Views(2, 1)),
        method.clip.logit_scale,
    )

    def scores(clip):
        of_classes = [
            bag_scores(clip[:, None], one, make_bag(own[None], torch.ones(1, len(own))), scale.exp()) for own in prompts
        ]
        return torch.cat(of_classes, dim=1)[0]

    with torch.no_grad():
        for number in range(len(samples)):
            views, frame_mask = videos[number]["video"], videos[number]["frame_mask"]
            clips = method.encode_video(normalise_for(method.clip, views), frame_mask)
            clips = clips / clips.norm(dim=1, keepdim=True)
            each = torch.stack([scores(clip[None]) for clip in clips])
            expected = scores(clips.mean(dim=0, keepdim=True)) if fusion == "features" else fuse(each[None], fusion)[0]
            torch.testing.assert_close(found[number].float(), expected.float(), atol=1e-4, rtol=1e-4)


def test_checkpoints_of_texts_and_bags_serve_each_other(small_actions, small_data, trained, flags, tmp_path):
    """All score by similarity. What a bag does not train of the text side stays as it is in CLIP."""
    plain = ["--do_eval", *small_actions.flags(), "--classifier", "text"]
    assert main([*plain, *weights_of(trained), "--output_dir", str(tmp_path / "text")]) == 0
    assert "trained with --classifier bag, which trains no text side" in (tmp_path / "text" / "log.txt").read_text()
    assert lines_of(tmp_path / "text", "test")[0]["selection"] == "checkpoint as given"

    shared = ["--epochs", "1", "--method", "clip4clip"]
    data = [*retrieval_training(small_data, tmp_path / "retrieval"), *shared]
    assert retrieval(data) == 0
    start = ["--do_eval", *flags, *weights_of(tmp_path / "retrieval")]
    assert main([*start, "--output_dir", str(tmp_path / "bag")]) == 0
    evaluation = [flag for flag in data if flag != "--do_train"]
    evaluation += ["--do_eval", *weights_of(trained), "--output_dir", str(tmp_path / "captions")]
    assert retrieval(evaluation) == 0


@pytest.mark.slow
def test_new_text_prompts_of_a_method_are_not_made_up(small_actions, flags, tmp_path, capsys):
    """A bag does not train STOP's text prompts, and CLIP has none; so this checkpoint cannot score texts."""
    stop = ["--method", "stop", "--n_regions", "2", "--prompt_dropout", "0"]
    assert main([*TRAIN, *flags, *stop, "--shots", "3", "--output_dir", str(tmp_path / "run")]) == 0
    evaluation = ["--do_eval", *small_actions.flags(), *stop, "--classifier", "text", *weights_of(tmp_path / "run")]
    assert main([*evaluation, "--output_dir", str(tmp_path / "text")]) == 2
    error = capsys.readouterr().err
    assert "text_prompts" in error
    assert "was trained with --method stop --classifier bag" in error


def test_it_resumes_to_the_bit_with_the_same_features_only(small_actions, flags, tmp_path, monkeypatch, capsys):
    argv = [*TRAIN, *flags, "--mixup_alpha", "1", "--gradient_accumulation_steps", "2", "--batch_size", "8"]
    assert main([*argv, "--output_dir", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patched:
        interrupt_after(patched, 2)
        assert main([*argv, "--output_dir", str(tmp_path / "cut")]) == engine_run.EXIT_INTERRUPTED
    resume = [*argv, "--output_dir", str(tmp_path / "cut"), "--resume", "auto"]
    moved, other = tmp_path / "moved.safetensors", tmp_path / "other.safetensors"
    clip = load_clip(small_actions.clip)
    write_bag(other, clip, CLASSES, seed=1)
    for name, *changed in (("text features", "--text_features", str(other)), ("bag_mean", "--bag_mean", "masked")):
        assert main([*resume, *changed]) == 2
        assert f"{name} is " in capsys.readouterr().err
    write_bag(moved, clip, tuple(CLASSES[number] for number in ORDER))
    assert main([*resume, "--text_features", str(moved)]) == 0
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_parts_of_the_classes_take_their_rows(small_actions, tmp_path):
    """Also of a file without names, whose rows are all classes of the data set in their order."""
    features = some_features(4, seed=3)
    torch.save(features, tmp_path / "bag.pt")
    flags = ["--do_eval", *small_actions.flags(), "--classifier", "bag", "--text_features", str(tmp_path / "bag.pt")]
    found = {}
    for part in ("all", "base", "novel", "half:3"):
        assert main([*flags, "--classes", part, "--output_dir", str(tmp_path / part[:4])]) == 0
        found[part] = read_predictions(tmp_path / part[:4] / "predictions.npz")
    assert found["base"].keys == ("MoveLeft", "ShowRed")
    assert "names neither its classes nor its CLIP" in (tmp_path / "all" / "log.txt").read_text()
    beside = read_predictions(tmp_path / "base" / "novel" / "predictions.npz")
    np.testing.assert_allclose(beside.views, found["novel"].views, atol=1e-5)
    everything = dict(zip(found["all"].ids, found["all"].views, strict=True))
    for part in ("base", "novel", "half:3"):
        places = [CLASSES.index(key) for key in found[part].keys]
        assert 0 < len(places) < 4
        for video, scores in zip(found[part].ids, found[part].views, strict=True):
            np.testing.assert_allclose(scores, everything[video][:, places], atol=1e-4)


def test_mistakes_get_one_sentence_before_anything_is_written(small_actions, flags, tmp_path, capsys):
    clip = load_clip(small_actions.clip)
    write_bag(tmp_path / "other.safetensors", tiny_clip(seed=5), CLASSES)
    write_bag(tmp_path / "names.safetensors", clip, ("MoveLeft", "MoveRight", "Bowling", "Diving"))
    write_bag(tmp_path / "base.safetensors", clip, ("MoveLeft", "ShowRed"))
    torch.save(some_features(3), tmp_path / "three.pt")

    def file(name: str) -> list[str]:
        return ["--text_features", str(tmp_path / name)]

    for more, message in (
        (file("other.safetensors"), "was made with another text tower"),
        (file("names.safetensors"), "names Bowling, Diving, which are no class of this data set"),
        ([*file("base.safetensors"), "--classes", "base"], "has no prompts for 2 of these 2 classes (MoveRight, Show"),
        ([*file("three.pt"), "--classes", "base"], "has 3 rows without names, and this data set has 4 classes"),
        (file("nowhere.pt"), "no such file of text features"),
        (["--text_features", ""], "--classifier bag needs --text_features"),
        (["--classifier", "text", "--text_features", "", "--bag_mean", "masked"], "--bag_mean masked is for --clas"),
        (["--classifier", "text"], "bag.safetensors is for --classifier bag, and this is --classifier text"),
    ):
        assert main([*TRAIN, *flags, *more, "--output_dir", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err.rpartition("error: ")[2]
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_checkpoint_that_holds_another_clip_is_refused(small_actions, flags, trained, tmp_path, capsys):
    """Its text tower has not made the features of --pretrained_clip_name."""
    start = ["--classifier", "text", "--text_features", "", "--save_full", "--shots", "3"]
    assert main([*TRAIN, *flags, *start, "--output_dir", str(tmp_path / "full")]) == 0
    evaluation = ["--do_eval", *flags, *weights_of(tmp_path / "full"), "--output_dir", str(tmp_path / "eval")]
    assert main(evaluation) == 0
    clip, path = tiny_clip(seed=5), tmp_path / "other.safetensors"
    write_bag(path, clip, CLASSES)
    save_file(to_openai_keys(clip.state_dict()), tmp_path / "clip.safetensors", {"activation": "quick_gelu"})
    other = ["--pretrained_clip_name", str(tmp_path / "clip.safetensors"), "--text_features", str(path)]
    assert main([*evaluation, *other]) == 2
    assert "holds another CLIP than --pretrained_clip_name" in capsys.readouterr().err


def test_describe_needs_no_file_of_features(small_actions, capsys):
    counts = {}
    for classifier in ("text", "bag"):
        assert main(["--describe", *small_actions.flags(), "--classifier", classifier]) == 0
        counts[classifier] = json.loads(capsys.readouterr().out)
    parts = {name: counts[name]["trainable_by_part"] for name in counts}
    assert any(part.startswith("clip.text") for part in parts["text"])
    assert parts["bag"] == {name: n for name, n in parts["text"].items() if not name.startswith("clip.text")}


def test_stdd_learns_with_a_bag_and_scores_texts_too(small_actions, flags, tmp_path):
    """Its frames meet the prompts; its text tower is CLIP's, so a mean of several texts scores its clips as well."""
    few = ["--method", "stdd", "--shots", "3"]
    assert main([*TRAIN, *flags, *few, "--output_dir", str(tmp_path / "run")]) == 0
    names = load_file(tmp_path / "run" / "last.safetensors").keys()
    assert {name.split(".")[1] for name in names} == {"visual", "logit_scale"}
    (tmp_path / "templates.txt").write_text("a video of {}.\n{}\n")
    texts = ["--do_eval", *weights_of(tmp_path / "run"), "--classifier", "text"]
    texts += [*small_actions.flags(), "--templates", str(tmp_path / "templates.txt"), "--test_views", "2x1"]
    assert main([*texts, "--output_dir", str(tmp_path / "text")]) == 0
    assert read_predictions(tmp_path / "text" / "predictions.npz").views.shape == (12, 2, 4)
