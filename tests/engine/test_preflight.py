"""Mistakes that can be found before a run are reported before any video is read and any file is written."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dataloaders.samples import Sample
from engine.checkpoint import CheckpointHeader, save_checkpoint
from engine.gradients import idle
from engine.preflight import ZeroShotProbe
from engine.tasks.splits import hold_out
from main_task_retrieval import main
from modules.backbones import TextParts
from modules.clip_weights import backbone_sha256, load_clip, to_openai_keys
from modules.losses import symmetric_info_nce
from modules.methods import build_method
from tests.small_data import SmallData, write_small_data
from tests.tiny import TINY, tiny_batch, tiny_clip

ROOT = Path(__file__).parent.parent.parent
TRAIN = ["--do_train", "--epochs", "1", "--batch_size", "4"]


def error_of(capsys, *flags: str) -> str:
    assert main(flags) == 2
    _, found, message = capsys.readouterr().err.rpartition("error: ")  # progress bars stand before it
    assert found
    assert message.count("\n") == 1
    return message.strip()


def lines_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def unread(monkeypatch):
    """Fail the test if it reads a video."""

    def read(*_):
        raise AssertionError("a video was read")

    monkeypatch.setattr("dataloaders.frames.read_frames", read)


# Checks that need only the settings.


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("flag", "place", "message"),
    [
        ("--output_dir", "file", "--output_dir {0}/file: {0}/file is a file and not a folder"),
        ("--output_dir", "file/run", "--output_dir {0}/file/run: {0}/file is a file and not a folder"),
        ("--output_dir", "/proc/run", "--output_dir /proc/run: cannot be written to"),
        ("--results_csv", "folder", "--results_csv {0}/folder: is a folder; name a file"),
        ("--results_csv", "file/r.csv", "{0}/file is a file and not a folder"),
        ("--results_csv", "/proc/r.csv", "/proc: cannot be written to"),
        ("--results_csv", "other.csv", "{0}/other.csv: has other columns than this run's row (it lacks 'name', "),
        ("--results_csv", "binary.csv", "{0}/binary.csv: is not a results csv"),
    ],
)
def test_places_to_write_to(small_data, tmp_path, capsys, flag, place, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.csv").write_text("other,columns\n1,2\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    flags = [*TRAIN, *small_data.flags(), "--output_dir", str(tmp_path / "run"), flag, str(tmp_path / place)]
    assert message.format(tmp_path) in error_of(capsys, *flags)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["binary.csv", "file", "folder", "other.csv"]


@pytest.mark.parametrize("number", [0, 4])
def test_a_results_csv_with_other_columns_is_refused(small_data, tmp_path, capsys, number):
    """Check that a run with the same flags may add its row, and that runs with other columns are refused."""
    twins = tmp_path / "twins.csv"
    twins.write_text("video_id,twin_id\nvideo10,video11\n")
    kinds = [[], ["--dsl"], ["--qb_norm"], ["--twins_csv", str(twins)]]
    kinds.append([flag for kind in kinds for flag in kind])
    results = tmp_path / "results.csv"
    flags = ["--do_eval", *small_data.flags(), "--output_dir", str(tmp_path / "run"), "--results_csv", str(results)]
    assert main([*flags, *kinds[number]]) == 0
    written = results.read_text()
    for other, kind in enumerate(kinds):
        if other != number:
            message = error_of(capsys, *flags, *kind)
            assert "has other columns than this run's row" in message
            assert "twice" not in message
    assert results.read_text() == written
    results.write_text(written.rstrip("\r\n"))  # as some editors save it
    assert main([*flags, *kinds[number]]) == 0
    first, second = csv.DictReader(results.open())
    assert first == second


def test_an_empty_folder_name_is_refused(small_data, capsys):
    message = error_of(capsys, "--do_eval", *small_data.flags(), "--output_dir", "")
    assert message.startswith("--output_dir is empty: name a folder")


# Checks that need the model.


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(("value", "where"), [(float("nan"), "visual.proj"), (float("inf"), "logit_scale")])
def test_weights_that_are_not_finite(small_data, tmp_path, capsys, value, where):
    weights, path = load_file(small_data.clip), tmp_path / "broken.safetensors"
    weights[where].view(-1)[0] = value
    save_file(weights, path, {"activation": "quick_gelu"})
    flags = [*TRAIN, *small_data.flags(), "--pretrained_clip_name", str(path), "--output_dir", str(tmp_path / "run")]
    message = error_of(capsys, *flags)
    count = weights[where].numel()
    assert message.startswith(f"{path}: 1 of the {count} values of the tensor {where} are NaN or infinite; ")


def test_a_checkpoint_that_is_not_finite(small_data, tmp_path, capsys):
    clip = load_clip(small_data.clip)
    method, path = build_method("vpt", clip), tmp_path / "diverged.safetensors"
    with torch.no_grad():
        method.prompts[0, 0, 0] = float("nan")
    save_checkpoint(path, method, CheckpointHeader({}, 3, backbone_sha256(clip)))
    flags = [*small_data.flags(), "--method", "vpt", "--init_model", str(path), "--output_dir", str(tmp_path / "run")]
    for what in (["--do_eval"], TRAIN):
        message = error_of(capsys, *what, *flags)
        assert message.startswith(f"{path}: 1 of the 768 values of the tensor prompts are NaN or infinite; ")


@pytest.mark.usefixtures("unread")
def test_nothing_to_train(small_data, tmp_path, capsys):
    nothing = ["--method", "stop", "--no-use_intra", "--no-use_inter", "--text_prompt_length", "0"]
    message = error_of(capsys, *TRAIN, *small_data.flags(), *nothing, "--output_dir", str(tmp_path))
    assert message.startswith("nothing to train: with these options --method stop adds nothing to the frozen CLIP")


def test_more_words_than_the_clip_reads(small_data, tmp_path, capsys):
    flags = ["--do_eval", *small_data.flags(), "--max_words", "40", "--output_dir", str(tmp_path)]
    assert error_of(capsys, *flags) == "--max_words 40 exceeds the 16 tokens that this CLIP reads: pass --max_words 16"


STARTS = {
    "meanP": (["--method", "clip4clip"], "zero-shot"),
    "seqTransf": (["--method", "clip4clip", "--sim_header", "seqTransf"], "untrained"),
    "stop": (["--method", "stop"], "untrained"),
    "stop, nothing in it": (
        ["--method", "stop", "--no-use_intra", "--no-use_inter", "--text_prompt_length", "0"],
        "zero-shot",
    ),
    "stop, one sequence a clip": (
        ["--method", "stop", "--attention", "joint", "--no-use_intra", "--no-use_inter", "--text_prompt_length", "0"],
        "untrained",
    ),
    "vpt": (["--method", "vpt"], "untrained"),
    "dgl": (["--method", "dgl"], "untrained"),
    "stop_released": (["--method", "stop_released"], "untrained"),
}


@pytest.mark.parametrize("start", STARTS)
def test_only_unchanged_clip_is_called_zero_shot(small_data, tmp_path, start):
    """Check the name in the log, the metrics and the row; a method with random parts is called untrained."""
    method, selection = STARTS[start]
    if start == "seqTransf":  # it copies text blocks, so it needs a CLIP whose text is as wide as its embeddings
        wide = replace(TINY, embed_dim=TINY.text_width)
        clip = tmp_path / "wide.safetensors"
        save_file(to_openai_keys(tiny_clip(architecture=wide).state_dict()), clip, {"activation": "quick_gelu"})
        method = [*method, "--pretrained_clip_name", str(clip), "--cross_num_hidden_layers", "1"]
    results = tmp_path / "results.csv"
    flags = ["--do_eval", *small_data.flags(), *method, "--output_dir", str(tmp_path), "--results_csv", str(results)]
    assert main(flags) == 0
    (row,) = csv.DictReader(results.open())
    (line,) = lines_of(tmp_path)
    assert row["selection"] == line["selection"] == selection
    log = (tmp_path / "log.txt").read_text()
    assert f"selection: {selection} (epoch 0)" in log
    assert ("is evaluated untrained" in log) == (selection == "untrained")


def test_zero_shot_metrics_do_not_depend_on_the_seed(small_data, tmp_path):
    scores = set()
    for seed in ("0", "1"):
        flags = ["--do_eval", *small_data.flags(), "--seed", seed, "--output_dir", str(tmp_path / seed)]
        assert main(flags) == 0
        line = lines_of(tmp_path / seed)[0]
        scores.add(tuple(value for name, value in line.items() if name.startswith(("t2v", "v2t"))))
    assert len(scores) == 1


def test_the_probe_compares_scores_and_not_parameters():
    """Check that an added parameter without effect passes, and that a changed tensor of CLIP is noticed."""
    clip = tiny_clip()
    probe = ZeroShotProbe(clip, 3, 8)
    method = build_method("clip4clip", clip)
    method.added = torch.nn.Parameter(torch.zeros(3))
    assert probe.same(method)
    with torch.no_grad():
        clip.text.text_projection[0] += 0.1
    assert not probe.same(method)


@pytest.mark.parametrize("end", ["largest id", "id 2", "last"])
def test_the_texts_of_the_probe_are_read_at_their_last_token(end):
    clip = tiny_clip(architecture=replace(TINY, vocab_size=60, text=TextParts(end=end)))
    probe = ZeroShotProbe(clip, 2, 16)  # of 60 tokens many are drawn
    assert clip.text.end_positions(probe.token_ids).tolist() == [15] * 4


# Checks that need the lists of videos.


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--batch_size", "22"],
            "There are 20 training items, a batch needs at least 22: pass --batch_size 20 or less",
        ),
        (
            ["--batch_size", "4", "--gradient_accumulation_steps", "3"],
            "is not divisible by the 1 processes times 3 parts",
        ),
        (["--select_on", "holdout", "--holdout_videos", "10"], "--holdout_videos 10 leaves none of the 10"),
        (["--select_on", "holdout", "--holdout_videos", "9"], "There are 2 training items, a batch needs at least 4"),
        (["--train_twins_csv", "twins.csv"], "names video99, not in the train split"),
        (["--train_twins_csv", "none.csv"], "--train_twins_csv none.csv is not a file"),
    ],
)
def test_the_training_split(small_data, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("twins.csv").write_text("video_id,twin_id\nvideo0,video99\n")
    assert message in error_of(capsys, *TRAIN, *small_data.flags(), "--allow_missing", "3", *flags)


def test_a_test_video_that_cannot_be_read_is_found_before_training(tmp_path, capsys, monkeypatch):
    data = write_small_data(tmp_path / "data", n_train=4, n_test=2)
    (data.videos / "video5.mp4").write_bytes(b"this is no video")
    monkeypatch.setattr("engine.run.train", None)
    message = error_of(capsys, *TRAIN, *data.flags(), "--output_dir", str(tmp_path / "run"))
    assert "video5.mp4" in message
    assert "the first of 1 unusable among the 2 videos of the test split" in message


def test_a_held_out_video_that_cannot_be_read_is_found_before_training(tmp_path, capsys, monkeypatch):
    data = write_small_data(tmp_path / "data", n_train=4, n_test=2)
    samples = [Sample(str(number), Path(), ("a caption",)) for number in range(4)]
    number = hold_out(samples, 2, seed=42)[1][0].video_id
    (data.videos / f"video{number}.mp4").write_bytes(b"this is no video")
    monkeypatch.setattr("engine.run.train", None)
    flags = [*TRAIN, *data.flags(), "--select_on", "holdout", "--holdout_videos", "2", "--output_dir", str(tmp_path)]
    assert f"video{number}.mp4" in error_of(capsys, *flags)


@pytest.mark.usefixtures("unread")
def test_a_twins_csv_without_test_videos(small_data, tmp_path, capsys):
    twins = tmp_path / "twins.csv"
    twins.write_text("video_id,twin_id\n")
    flags = [*TRAIN, *small_data.flags(), "--twins_csv", str(twins), "--output_dir", str(tmp_path)]
    message = error_of(capsys, *flags)
    assert message.startswith(f"--twins_csv {twins}: no test video that is used has a twin there")


# Mistakes that the first step would also show, but only after the folder was written to.


def one_frame(small_data: SmallData, output: Path) -> list[str]:
    return [*TRAIN, *small_data.flags(), "--method", "stop", "--max_frames", "1", "--output_dir", str(output)]


def test_parameters_without_a_gradient_are_refused(small_data, tmp_path, capsys):
    """Check STOP with one frame, which has no gap for temporal prompts; without these prompts it can be trained."""
    (tmp_path / "config.json").write_text("of an earlier run")
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume/step_00000001.pt").touch()
    message = error_of(capsys, *one_frame(small_data, tmp_path))
    assert message == (
        "34 of the 57 trained tensors have no part in the loss of clips of 1 frame and cannot learn: inter.0.slots, "
        "inter.0.dynamics.conv.weight, inter.0.prompter.down.weight and 31 more; pass --max_frames 2 or more, or "
        "switch off the part of the method that they belong to"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "resume"]
    assert (tmp_path / "config.json").read_text() == "of an earlier run"
    assert main([*one_frame(small_data, tmp_path), "--no-use_inter"]) == 0


@pytest.mark.slow
def test_two_processes_give_the_same_error(small_data, tmp_path, capsys):
    message = error_of(capsys, *one_frame(small_data, tmp_path / "one"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "main_task_retrieval.py"), *one_frame(small_data, tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode != 0
    assert f"error: {message}" in done.stderr
    assert "Expected to have finished reduction" not in done.stderr


def test_parameters_whose_gradient_is_always_zero(small_data, tmp_path):
    """Check STOP with alpha 1, where the dynamics map has no weight in the saliency, so its kernels cannot learn."""
    for alpha, expected in ((0.5, []), (1.0, ["intra.0.dynamics.conv.weight"])):
        method = build_method("stop", tiny_clip(), prompt_depth=1, alpha=alpha).train()
        parameters = dict(method.trainable_parameters())
        optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
        assert idle(optimizer, parameters) == []
        for seed in range(3):
            text, video = method(*tiny_batch(seed))
            symmetric_info_nce(method.similarity(text, video)).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert idle(optimizer, parameters) == expected

    flags = [*small_data.flags(), "--method", "stop", "--prompt_depth", "1", "--alpha", "1", "--epochs", "2"]
    assert main([*TRAIN, *flags, "--output_dir", str(tmp_path)]) == 0
    named = "1 of 29 trained tensors have had no gradient in any step and keep their initial values: intra.0.dynamics"
    assert named in (tmp_path / "log.txt").read_text()
