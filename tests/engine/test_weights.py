"""A training that starts from a full checkpoint records that checkpoint's CLIP and evaluates to the same scores."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import read_header
from engine.run import EXIT_INTERRUPTED
from engine.train import Training
from main_task_retrieval import main
from modules.clip_weights import backbone_sha256, load_clip, to_openai_keys
from tests.small_data import SmallData
from tests.tiny import tiny_clip

STOP = ["--method", "stop", "--lr", "1e-3", "--frame_sampling", "segment"]
CLIP4CLIP = ["--method", "clip4clip", "--lr", "1e-3", "--coef_lr", "1", "--freeze_layer_num", "1"]


def training(data: SmallData, output: Path, *flags: str) -> list[str]:
    """Return the flags of a training with 20 pairs and 2 steps per epoch."""
    few = ["--epochs", "1", "--batch_size", "10", "--output_dir", str(output)]
    return ["--do_train", *data.flags(), *few, *flags]


def last_scores(output: Path) -> dict[str, float]:
    line = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: value for name, value in line.items() if name.startswith(("t2v", "v2t"))}


@pytest.fixture(scope="module")
def other_clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("other") / "other_clip.safetensors"
    save_file(to_openai_keys(tiny_clip(seed=7).state_dict()), path, {"activation": "quick_gelu"})
    return path


@pytest.fixture(scope="module", params=[STOP, CLIP4CLIP], ids=["stop", "clip4clip"])
def full(request, small_data, other_clip, tmp_path_factory) -> tuple[Path, list[str]]:
    """Write a full checkpoint on the other CLIP; return it and the flags of its method."""
    output = tmp_path_factory.mktemp("full")
    flags = training(small_data, output, *request.param, "--pretrained_clip_name", str(other_clip), "--save_full")
    assert main(flags) == 0
    return output / "last.safetensors", request.param


def test_a_checkpoint_trained_from_another_clip_contains_it(small_data, other_clip, full, tmp_path, capsys):
    path, method = full
    results = tmp_path / "results.csv"
    flags = training(small_data, tmp_path / "new", *method, "--init_model", str(path), "--results_csv", str(results))
    assert main(flags) == 0
    new = tmp_path / "new" / "last.safetensors"
    header = read_header(new)
    assert header.full
    assert header.backbone_sha256 != backbone_sha256(load_clip(small_data.clip))
    if method is STOP:  # CLIP is unchanged, because STOP trains nothing of it
        assert header.backbone_sha256 == backbone_sha256(load_clip(other_clip))
    logged = (tmp_path / "new" / "log.txt").read_text()
    assert f"the CLIP is that of {path} (sha256 {header.backbone_sha256[:12]}) and not of --pretrained_clip" in logged
    assert next(csv.DictReader(results.open()))["clip"] == "of last.safetensors"
    assert json.loads((tmp_path / "new" / "config.json").read_text())["save_full"] is True

    trained, source = load_file(new), load_file(path)
    frozen = "clip.visual.conv1.weight" if method is STOP else "clip.text.blocks.0.ln_1.weight"
    assert torch.equal(trained[frozen], source[frozen])
    for clip in (small_data.clip, other_clip):
        more = ["--pretrained_clip_name", str(clip), "--output_dir", str(tmp_path / "evaluated")]
        assert main(["--do_eval", "--init_model", str(new), *more]) == 0
        assert last_scores(tmp_path / "evaluated") == last_scores(tmp_path / "new")


def test_a_checkpoint_trained_from_the_same_clip_contains_no_clip(small_data, other_clip, full, tmp_path):
    path, method = full
    same = ["--pretrained_clip_name", str(other_clip)]
    assert main(training(small_data, tmp_path / "new", *method, "--init_model", str(path), *same)) == 0
    new = tmp_path / "new" / "last.safetensors"
    assert not read_header(new).full
    assert read_header(new).backbone_sha256 == backbone_sha256(load_clip(other_clip))
    assert main(["--do_eval", "--init_model", str(new), "--output_dir", str(tmp_path / "evaluated")]) == 0
    assert last_scores(tmp_path / "evaluated") == last_scores(tmp_path / "new")


def test_a_training_from_another_clip_resumes_to_the_bit_and_only_with_it(
    small_data, full, tmp_path, monkeypatch, capsys
):
    path, method = full
    whole, cut = (
        training(small_data, tmp_path / name, *method, "--epochs", "2", "--init_model", str(path))
        for name in ("whole", "cut")
    )
    assert main(whole) == 0
    take_step = Training.take_step

    def interrupted(self, batch):
        take_step(self, batch)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "take_step", interrupted)
        assert main(cut) == EXIT_INTERRUPTED
    without = [flag for flag in cut if flag not in ("--init_model", str(path))]
    assert main([*without, "--resume", "auto"]) == 2
    message = capsys.readouterr().err
    assert "CLIP (sha256) is" in message
    assert "frozen tensors is" in message
    assert main([*cut, "--resume", "auto"]) == 0
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "cut"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_of_trained_tensors_changes_no_identity(small_data, tmp_path):
    """Check a method that trains CLIP: its tensors differ from CLIP's, but its CLIP still counts as the given one."""
    assert main(training(small_data, tmp_path / "one", *CLIP4CLIP)) == 0
    more = ["--init_model", str(tmp_path / "one" / "last.safetensors")]
    assert main(training(small_data, tmp_path / "two", *CLIP4CLIP, *more)) == 0
    header = read_header(tmp_path / "two" / "last.safetensors")
    assert (header.full, header.backbone_sha256) == (False, backbone_sha256(load_clip(small_data.clip)))
