"""Training from shards through the program: resumed, on several processes, from a server, and with broken samples."""

import json
import multiprocessing
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloaders import shard_download
from engine.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig
from engine.precision import autocast_for
from engine.tasks.base import Part
from engine.tasks.contrastive import ContrastiveStep
from engine.tasks.retrieval import RetrievalSettings
from engine.train import Training
from main_task_retrieval import main
from modules.methods import build_method
from tests.processes import run_as_group
from tests.shard_server import serving
from tests.small_shards import clips_of, write_shards
from tests.tiny import tiny_batch, tiny_clip
from tests.training_runs import METHODS, assert_same_weights, interrupt_after, lines_of, run

SIZES = [2, 3, 1, 2, 2, 3, 2, 1, 2, 2]  # 20 clips: 5 steps of 4
FILE = "broken_samples.jsonl"
BROKEN = {"mp4": b"no video", "json": b'{"captions": ["a"]}'}


@pytest.fixture(scope="module")
def shards(small_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "shards"
    write_shards(folder, clips_of(small_data, 2), SIZES)
    return folder


def training(small_data, shards, output: Path, *flags: str, method: str = "clip4clip") -> list[str]:
    """Return the flags of a training of 2 epochs with 5 steps each."""
    own = [flag for flag in small_data.flags() if flag != "--expand_msrvtt_sentences"]
    few = ["--epochs", "2", "--batch_size", "4", "--n_display", "1", "--output_dir", str(output)]
    source = ["--train_shards", str(shards), "--shard_streams", "2"]
    return ["--do_train", *own, *few, *source, *METHODS[method], *flags]


def error_of(flags: list[str], capsys) -> str:
    capsys.readouterr()
    assert main(flags) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def undisturbed(small_data, shards, tmp_path_factory) -> Path:
    """Train once without any disturbance; other trainings are compared with it."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    run(training(small_data, shards, output, method="stop"))
    return output


def test_killed_and_resumed_it_is_as_undisturbed(small_data, shards, undisturbed, tmp_path, monkeypatch):
    """Check it bit for bit, after SIGKILL within an epoch and with another number of workers."""
    output = tmp_path / "run"
    flags = training(small_data, shards, output, "--save_every", "1", "--resume", "auto", method="stop")
    with monkeypatch.context() as patched:
        interrupt_after(patched, 8, signal.SIGKILL)
        process = multiprocessing.get_context("fork").Process(target=run, args=(flags,))
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    run([*flags, "--num_thread_reader", "2"])
    assert "resumed after step 7 of 10" in (output / "log.txt").read_text()
    assert_same_weights(output, undisturbed)
    for kind in ("train", "test"):
        assert lines_of(output, kind) == lines_of(undisturbed, kind)
    assert not (output / "broken_samples.jsonl").exists()


def test_from_a_server_that_dies_and_comes_back(small_data, shards, undisturbed, tmp_path, monkeypatch):
    """Check that no sample is lost, in a cache that is smaller than the shards: the weights are those of the folder."""
    monkeypatch.setattr(shard_download, "FIRST_WAIT", 0.05)
    sizes = sorted(path.stat().st_size for path in shards.glob("*.tar"))
    most = sum(sizes[2:])  # the least that is accepted: two of the ten shards are not in use
    take_step = Training.take_step
    with serving(shards) as server:
        flags = training(small_data, server.address, tmp_path / "run", method="stop")
        flags += ["--shard_cache", str(tmp_path / "cache"), "--shard_cache_gb", str(most / 1e9)]

        def and_then(self, batch):
            if self.step == 1:
                server.stop()
                threading.Timer(0.5, server.start).start()
            return take_step(self, batch)

        for number, fault in enumerate(("500", "cut", "404", "wrong", "half")):
            server.faults[f"{number:06d}.tar"] += [fault] * 2
        monkeypatch.setattr(Training, "take_step", and_then)
        run(flags)
    assert_same_weights(tmp_path / "run", undisturbed)
    last = lines_of(tmp_path / "run", "train")[-1]
    assert last["shards_downloaded"] >= 10
    assert last["broken_samples"] == 0
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.tar")) <= most


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in lines_of(output, "train")]


@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_train_as_one(small_data, tmp_path, parts):
    """Check it with a broken sample in each of two shards, and in parts."""
    samples = clips_of(small_data, 2)
    samples[2], samples[13] = ("x", BROKEN), ("y", BROKEN)
    write_shards(tmp_path / "shards", samples, SIZES)
    more = ["--allow_missing", "2", "--batch_size", "8", "--shard_streams", "4"]
    more += ["--gradient_accumulation_steps", str(parts)]
    flags = [training(small_data, tmp_path / "shards", tmp_path / name, *more) for name in ("one", "two")]
    run(flags[0])
    run_as_group(2, run, flags[1])
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(tmp_path / "two"), atol=1e-5)
    assert_same_weights(tmp_path / "one", tmp_path / "two", atol=1e-5, rtol=1e-4)
    found = [
        {(line["epoch"], line["index"]) for line in map(json.loads, (tmp_path / name / FILE).open())}
        for name in ("one", "two")
    ]
    assert found[0] == found[1]
    assert found[0] <= {(1, 2), (1, 13), (2, 2), (2, 13)}
    assert found[0]


def test_broken_samples_are_counted_named_and_bounded(small_data, tmp_path, capsys, monkeypatch):
    samples = clips_of(small_data, 2)
    samples[1], samples[6], samples[17] = ("x", BROKEN), ("y", BROKEN), ("z", BROKEN)
    write_shards(tmp_path / "shards", samples, SIZES)
    output = tmp_path / "run"
    flags = training(small_data, tmp_path / "shards", output, "--save_every", "1", "--allow_missing", "3")
    message = error_of([*flags[:-1], "0"], capsys)
    assert re.search(r"0000\d\d.tar/[xyz].mp4 is not a video.*; 1 sample of epoch 1 could not be read so far", message)
    assert "--allow_missing is 0" in message
    assert "3 samples of epoch 1 could not be read so far" in error_of([*flags[:-1], "2"], capsys)

    with monkeypatch.context() as patched:
        interrupt_after(patched, 9)
        run(flags, exit_code=75)
    run([*flags, "--resume", "auto"])
    counts = [line["broken_samples"] for line in lines_of(output, "train")][-10:]
    assert counts[4] == counts[9] == 3  # every sample comes once in an epoch of 5 steps
    assert counts[:5] == sorted(counts[:5])
    named = [json.loads(line) for line in (output / FILE).read_text().splitlines()]
    assert sorted((line["epoch"], line["index"]) for line in named) == [(e, i) for e in (1, 2) for i in (1, 6, 17)]
    log = (output / "log.txt").read_text()
    assert len(re.findall(r"left out of epoch 2: .*/0000\d\d.tar/[xyz].mp4 is not a video", log)) == 3
    assert f"({FILE} names all)" in log


@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_is_that_of_the_other_pairs(parts):
    video, frame_mask, token_ids = (torch.cat([tensor, tensor.flip(0)])[:4] for tensor in tiny_batch())
    assert len(video) == 4
    method = build_method("clip4clip", tiny_clip())
    left_out, fewer = (ContrastiveStep(method, autocast_for("fp32", torch.device("cpu"))) for _ in range(2))
    left_out.kept = np.array([0, 2, 3])
    video[1] = 0
    keep = [0, 2, 3]
    gradients = []
    for step, inputs, count in (
        (left_out, (video, frame_mask, token_ids), parts),
        (fewer, (video[keep], frame_mask[keep], token_ids[keep]), 1),
    ):
        step.method.zero_grad()
        known, pieces = (None, [Part(inputs)]) if count == 1 else step.in_parts(inputs, count)
        values = []
        for piece in pieces:
            loss = step(*piece.inputs)
            loss.backward()
            values.append(loss.detach())
        gradients.append([p.grad.clone() for _, p in step.method.trainable_parameters()])
        gradients[-1].append(values[0] if known is None else known)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--expand_msrvtt_sentences"], ["--expand_msrvtt_sentences needs a list", "--train_shards"]),
        (["--same_video", "apart"], ["--same_video apart has no effect", "leave it out"]),
        (["--qb_norm"], ["--qb_norm needs a list"]),
        (["--select_on", "holdout", "--holdout_videos", "2"], ["--select_on holdout needs a list"]),
        (["--shard_streams", "3"], ["--shard_streams 3 must divide --batch_size 4", "pass --shard_streams 2"]),
        (["--shard_streams", "0"], ["--shard_streams"]),
        (["--shard_cache_gb", "-1"], ["--shard_cache_gb"]),
        (["--batch_size", "32", "--shard_streams", "4"], ["20 training items", "--batch_size"]),
        (["--train_shards", "/nowhere"], ["--train_shards /nowhere is not a folder"]),
        (["--train_shards", "https://a:b@host/x", "--shard_cache", "c"], ["holds a name, a password"]),
        (["--train_shards", "https://host/x"], ["--shard_cache"]),
        (["--train_shards", "pipe:cat {}", "--shard_cache", "c"], ["--allow_pipe"]),
        (["--method", "stdd", "--coef_lr", "1e-3", "--allow_missing", "1"], ["--allow_missing 1", "STDD"]),
    ],
)
def test_settings_that_do_not_go_together(small_data, shards, tmp_path, capsys, flags, parts):
    message = error_of(training(small_data, shards, tmp_path / "run", *flags), capsys)
    assert all(part in message for part in parts), message
    assert not (tmp_path / "run").exists()


def test_other_shards_or_another_order_are_another_run(small_data, shards, tmp_path, capsys):
    flags = training(small_data, shards, tmp_path / "run", "--epochs", "1")
    run(flags)
    write_shards(tmp_path / "moved", clips_of(small_data, 2), SIZES)
    again = [*flags, "--resume", "auto"]
    run([*again, "--train_shards", str(tmp_path / "moved")])  # the same content elsewhere
    assert "shard streams is 2 there and 4 here" in error_of([*again, "--shard_streams", "4"], capsys)
    write_shards(tmp_path / "other", clips_of(small_data, 2)[::-1], SIZES)
    assert "training shards is" in error_of([*again, "--train_shards", str(tmp_path / "other")], capsys)


def test_a_checkpoint_of_shards_starts_any_other_training(small_data, shards, tmp_path):
    """Check that its evaluation needs no shards, and that the test list and not the training list is needed.

    The frame cache keeps the test videos alone.
    """
    cached = ["--frame_cache", str(tmp_path / "frames")]
    run(training(small_data, shards, tmp_path / "run", "--epochs", "1", "--train_csv", "", *cached))
    assert len(list((tmp_path / "frames").rglob("*.safetensors"))) == 7
    first = ["--init_model", str(tmp_path / "run" / "last.safetensors")]
    run(["--do_eval", *first, "--output_dir", str(tmp_path / "evaluated")])
    ours, theirs = (lines_of(tmp_path / name, "test")[-1] for name in ("run", "evaluated"))
    assert {name: v for name, v in ours.items() if name[1:3] == "2v"} == {
        name: v for name, v in theirs.items() if name[1:3] == "2v"
    }
    few = ["--epochs", "1", "--batch_size", "4", *METHODS["clip4clip"], "--output_dir", str(tmp_path / "tuned")]
    run(["--do_train", *small_data.flags(), *few, *first])


def test_settings_of_old_checkpoints_still_load():
    """Check that the flags have defaults that old files lack, and that those do not enter a run's identity."""
    settings = Config(ModelConfig(), DataConfig(), OptimConfig(), RunConfig(describe=True), RetrievalSettings()).flat()
    old = {name: value for name, value in settings.items() if "shard" not in name and name != "allow_pipe"}
    assert Config.from_flat(old, RetrievalSettings).task == RetrievalSettings()
