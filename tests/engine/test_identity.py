"""A run continues only from a resume point of the same training, and a refusal changes no file."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dataloaders.samples import Sample
from engine import identity
from engine.checkpoint import read_header
from engine.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig
from engine.tasks.retrieval import RetrievalSettings
from main_task_retrieval import main
from modules.methods import build_method
from tests.small_data import SmallData
from tests.tiny import tiny_clip


def state_of(folder: Path) -> dict[str, str]:
    """Return a hash of each file in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trained(small_data, tmp_path_factory) -> tuple[SmallData, Path, list[str]]:
    """Train on a separate copy of the data; return the data, the run's folder and its flags."""
    data = SmallData(tmp_path_factory.mktemp("trained") / "data", small_data.clip)
    shutil.copytree(small_data.folder, data.folder)
    output = data.folder.parent / "run"
    flags = ["--method", "vpt", "--epochs", "1", "--batch_size", "10", "--select_on", "test", "--output_dir"]
    assert main(["--do_train", *data.flags(), *flags, str(output)]) == 0
    return data, output, ["--do_train", *flags, str(output), "--resume", "auto"]


def other_captions(data: SmallData) -> list[str]:
    path = data.folder / "MSRVTT_data.json"
    content = json.loads(path.read_text())
    content["sentences"][3]["caption"] += " indeed"
    path.write_text(json.dumps(content))
    return []


def other_test_captions(data: SmallData) -> list[str]:
    path = data.folder / "MSRVTT_JSFUSION_test.csv"
    path.write_text(path.read_text().replace("film 12", "film twelve"))
    return []


def other_order(data: SmallData) -> list[str]:
    path = data.folder / "MSRVTT_train.9k.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(rows)]) + "\n")
    return []


def another_file(data: SmallData) -> list[str]:
    with open(data.videos / "video3.mp4", "ab") as file:
        file.write(bytes(8))
    return []


def another_place(data: SmallData) -> list[str]:
    (data.videos / "below").mkdir()
    (data.videos / "video3.mp4").rename(data.videos / "below" / "video3.mp4")
    return []


def twins(data: SmallData) -> list[str]:
    path = data.folder / "twins.csv"
    path.write_text("video_id,twin_id\nvideo0,video1\n")
    return ["--train_twins_csv", str(path)]


def left_out(data: SmallData) -> list[str]:
    (data.videos / "video3.mp4").unlink()
    return ["--allow_missing", "1"]


def jpeg_cache(data: SmallData) -> list[str]:
    return ["--frame_cache", str(data.folder / "cache"), "--frame_cache_format", "jpeg"]


def another_clip(data: SmallData) -> list[str]:
    path = data.folder / "other.safetensors"
    save_file(
        {name: tensor * 1.01 for name, tensor in load_file(data.clip).items()}, path, {"activation": "quick_gelu"}
    )
    return ["--pretrained_clip_name", str(path)]


def missing_video(data: SmallData) -> list[str]:
    (data.videos / "video3.mp4").unlink()
    return []


def bad_list(data: SmallData) -> list[str]:
    (data.folder / "MSRVTT_train.9k.csv").write_text("key\nvideo0\n")
    return []


def no_point(data: SmallData) -> list[str]:
    return ["--resume", str(data.folder / "none.pt")]


REFUSED = [
    (other_captions, "training captions is '10, sha256 "),
    (other_test_captions, "selection captions is '7, sha256 "),
    (other_order, "training videos is '10, sha256 "),
    (another_file, "training files is '10, sha256 "),
    (another_place, "training files is '10, sha256 "),
    (twins, "training twins is '0, sha256 "),
    (left_out, "left out is '' there and 'video3' here"),
    (jpeg_cache, "frames is 'as decoded' there and 'jpeg frame cache' here"),
    (another_clip, "CLIP (sha256) is"),
    (missing_video, "video3.mp4 is missing"),
    (bad_list, "no column"),
    (no_point, "no such resume point"),
    (lambda _: ["--lr", "0.5"], "lr is 0.0001 there and 0.5 here"),
    (lambda _: ["--precision_val", "fp32", "--precision", "bf16"], "precision is 'fp32' there and 'bf16' here"),
    (lambda _: ["--seed", "7"], "seed is 42 there and 7 here"),
    (lambda _: ["--batch_size", "1000"], "batch"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[f"{c.__name__} {m.split()[0]}" for c, m in REFUSED])
def test_another_run_is_refused_and_changes_no_file(trained, tmp_path, capsys, change, message):
    data, output, flags = trained
    changed = SmallData(tmp_path / "data", data.clip)
    shutil.copytree(data.folder, changed.folder)
    more = change(changed)
    before = state_of(output)
    assert main([*flags, *changed.flags(), *more]) == 2
    assert message in capsys.readouterr().err
    assert state_of(output) == before


def test_a_run_resumes_on_a_copied_data_set_and_with_other_cost_settings(trained, tmp_path):
    data, output, flags = trained
    copied, folder = SmallData(tmp_path / "elsewhere", data.clip), tmp_path / "run"
    shutil.copytree(data.folder, copied.folder, copy_function=shutil.copy)  # with new modification times
    shutil.copytree(output, folder)
    for path in copied.videos.iterdir():
        os.utime(path, (1, 1))
    more = ["--frame_cache", str(tmp_path / "cache"), "--num_thread_reader", "1", "--gradient_accumulation_steps", "5"]
    assert main([*flags, *copied.flags(), *more, "--output_dir", str(folder)]) == 0
    assert "resumed after step 2 of 2" in (folder / "log.txt").read_text()


def test_an_evaluation_does_not_overwrite_the_settings_of_training(trained, tmp_path):
    _, output, _ = trained
    folder = tmp_path / "run"
    shutil.copytree(output, folder)
    before = state_of(folder)
    checkpoint = str(folder / "last.safetensors")
    assert main(["--do_eval", "--init_model", checkpoint, "--max_frames", "2", "--output_dir", str(folder)]) == 0
    after = state_of(folder)
    for name in ("config.json", "last.safetensors", "best.safetensors", "resume/step_00000002.pt"):
        assert after[name] == before[name], name
    evaluated = json.loads((folder / "eval_config.json").read_text())
    assert (evaluated["max_frames"], evaluated["do_train"]) == (2, False)
    for name in ("log.txt", "metrics.jsonl"):  # an evaluation appends to these
        assert (folder / name).read_bytes().startswith((output / name).read_bytes()), name


def test_a_resume_point_of_an_earlier_version_is_refused(trained, tmp_path, capsys):
    """Check that the error says so, also with auto: it is not called damaged, and the run does not start again."""
    data, output, flags = trained
    folder = tmp_path / "run"
    shutil.copytree(output, folder)
    point = folder / "resume" / "step_00000002.pt"
    torch.save(torch.load(point, weights_only=True) | {"format": "stop-video resume point 1"}, point)
    before = state_of(folder)
    for resume in ("auto", str(point)):
        assert main([*flags, *data.flags(), "--output_dir", str(folder), "--resume", resume]) == 2
        message = capsys.readouterr().err
        assert "step_00000002.pt: was written by an earlier version of this project" in message
        assert state_of(folder) == before


def test_a_resume_point_contains_the_best_weights(trained, tmp_path):
    """Resume in a folder with another run's files; its points, lines and weights must be neither used nor lost."""
    data, _, flags = trained
    more, whole, other = [*flags[:-2], *data.flags(), "--lr", "1e-2"], tmp_path / "whole", tmp_path / "other"
    assert main([*more, "--epochs", "2", "--output_dir", str(whole)]) == 0
    assert main([*more, "--epochs", "3", "--lr", "1e-3", "--output_dir", str(other)]) == 0
    left = (other / "metrics.jsonl").read_text()
    result = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    for step, folder in ((2, shutil.copytree(other, tmp_path / "used")), (4, other), (4, tmp_path / "new")):
        point = whole / "resume" / f"step_{step:08}.pt"
        assert main([*more, "--epochs", "2", "--output_dir", str(folder), "--resume", str(point)]) == 0
        for kept in ("best.safetensors", "last.safetensors"):
            ours, theirs = (load_file(at / kept) for at in (folder, whole))
            assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
            assert read_header(folder / kept).epoch == read_header(whole / kept).epoch
        line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert line | {"time": 0} == result | {"time": 0}
    assert (other / "metrics.jsonl").read_text().startswith(left)
    for folder, points in (("resume_before_1", [4, 6]), ("resume", [4])):
        names = [path.name for path in sorted((tmp_path / "used" / folder).iterdir())]
        assert names == [f"step_{step:08}.pt" for step in points]


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"12345")
    return [Sample("a", tmp_path / "a.mp4", ("one", "two")), Sample("b", tmp_path / "b.mp4", ("three",), 1.0, 2.0)]


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"video_id": "c"}, {"training videos"}),
        ({"captions": ("thr", "ee")}, {"training captions"}),
        ({"captions": ("Three",)}, {"training captions"}),
        ({"start": None}, {"training videos"}),
        ({"end": 2.5}, {"training videos"}),
    ],
)
def test_each_part_of_a_sample_counts(samples, tmp_path, changed, names):
    others = [samples[0], replace(samples[1], **changed)]
    one, other = (identity.of_the_samples(some, [], tmp_path, []) for some in (samples, others))
    assert {name for name in one if one[name] != other[name]} == names


def test_every_setting_counts_but_those_of_place_and_cost():
    """Compare with all settings, so that one that is added later counts too."""
    files = DataConfig(*["x"] * 4)
    config = Config(ModelConfig(), files, OptimConfig(), RunConfig(do_train=True), RetrievalSettings())
    found = identity.of_the_settings(config, "bf16")
    known = {*identity.SOURCE, *identity.PLACES, *identity.COST, "options", "precision_val"}
    known |= {*RetrievalSettings.of_the_run, *RetrievalSettings.places, *RetrievalSettings.newer}  # at their defaults
    known.add("frame_stride")  # without effect unless frames are a stride apart
    known |= {*identity.NEWER}  # at their defaults
    for section in (config.model, config.data, config.optim, config.task):
        for name, value in vars(section).items():
            assert (name in found) != (name in known), name
            assert name in known or name == "precision" or found[name] == value
    assert found["precision"] == "bf16"
    selects = replace(config, run=RunConfig(do_train=True, select_on="test"))
    assert "precision_val" in identity.of_the_settings(selects, "bf16")
    assert (
        identity.of_the_settings(replace(config, task=RetrievalSettings(loss="sigmoid")), "bf16")["loss"] == "sigmoid"
    )
    dense = replace(config, data=replace(files, frame_sampling="dense", frame_stride=4))
    assert identity.of_the_settings(dense, "bf16")["frame_stride"] == 4
    as_stdd = replace(config, optim=OptimConfig(adam_beta2=0.999, adam_eps=1e-8))
    assert set(identity.of_the_settings(as_stdd, "bf16")) - set(found) == {"adam_beta2", "adam_eps"}


def test_frozen_tensors_count_and_trained_ones_do_not():
    method = build_method("stop", tiny_clip())
    before = identity.of_the_weights(method, "a")
    with torch.no_grad():
        for _, parameter in method.trainable_parameters():
            parameter.add_(1)
    assert identity.of_the_weights(method, "a") == before
    with torch.no_grad():
        method.clip.visual.proj.add_(1)
    after = identity.of_the_weights(method, "a")
    assert {name for name in after if after[name] != before[name]} == {"frozen tensors"}
