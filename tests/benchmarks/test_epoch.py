"""The benchmark of an epoch runs the real training and evaluation, from a cache that a run would find too."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.epoch import EpochTime, MadeClips, Settings, fill_cache, format_times, main, make_samples
from dataloaders.cache import FrameCache
from dataloaders.decode import VideoError
from dataloaders.frames import FrameReader
from engine.clock import PHASES
from engine.tasks.retrieval import Retrieval
from engine.train import Training
from tests.small_data import SmallData, write_small_data


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> SmallData:
    return write_small_data(tmp_path_factory.mktemp("benchmark"), 1, 1)


def small(data: SmallData, output: Path) -> list[str]:
    """Return flags for three steps of 4 pairs on a tiny CLIP."""
    return [
        "--pretrained_clip_name", str(data.clip), "--clips", "3", "--pairs", "13", "--batch_size", "4",
        "--batch_size_val", "2", "--max_frames", "3", "--max_words", "12", "--num_thread_reader", "0",
        "--precision", "fp32", "--output", str(output),
    ]  # fmt: skip


@pytest.fixture
def taken(monkeypatch) -> list[tuple[torch.Size, torch.Size]]:
    """Record the shapes of clips and captions of every step."""
    shapes = []
    take_step = Training.take_step

    def recording(self, batch):
        shapes.append((batch["video"].shape, batch["token_ids"].shape))
        take_step(self, batch)

    monkeypatch.setattr(Training, "take_step", recording)
    return shapes


def test_a_whole_epoch(data, tmp_path, capsys, monkeypatch, taken):
    evaluated = []
    evaluate = Retrieval.evaluate

    def recording(self, split):
        metrics = evaluate(self, split)
        evaluated.append((len(split.videos), len(split.captions), metrics["text_to_video"]["R@10"]))
        return metrics

    monkeypatch.setattr(Retrieval, "evaluate", recording)
    assert main([*small(data, tmp_path / "a" / "b.json"), "--prompt_depth", "1"]) == 0
    assert taken == [((4, 3, 3, 32, 32), (4, 12))] * (2 + 3)
    assert evaluated == [(3, 3, 100.0)] * 2
    written = json.loads((tmp_path / "a" / "b.json").read_text())
    assert written["settings"]["pairs"] == 13
    assert written["settings"]["prompt_depth"] == 1  # the method's own
    assert written["commit"]
    assert written["hardware"]
    training = written["training"]
    assert (training["warm_up_steps"], training["steps"], training["pairs"]) == (2, 3, 12)
    assert training["clips_per_second"] == pytest.approx(12 / training["seconds"])
    assert training["msrvtt_epoch"] == pytest.approx(180_000 / 4 * training["seconds"] / 3)
    assert 0 < training["first_step"] < training["warm_up"]
    assert list(training["shares"]) == list(PHASES)
    assert sum(training["shares"].values()) == pytest.approx(1)
    assert written["evaluation_clips"] == 3
    assert min(written["evaluation"]) > 0
    printed = capsys.readouterr().out
    assert f"commit {written['commit']}" in printed
    assert "12 pairs in 3 steps" in printed
    assert "at this rate, extrapolated" in printed


def test_some_steps_with_worker_processes(data, tmp_path, taken):
    """The batches that workers may have prepared while the first step compiled are not counted."""
    output = tmp_path / "numbers.json"
    assert main([*small(data, output), "--method", "vpt", "--num_thread_reader", "1", "--steps", "1"]) == 0
    assert len(taken) == 1 + 2 + 1 + 1
    assert json.loads(output.read_text())["training"]["steps"] == 1


def test_compiled(data, tmp_path, capsys, monkeypatch, taken):
    """The graphs run on torch's own kernels."""
    compiled = []

    def compile_(method, **arguments):
        compiled.append(type(method).__name__)
        nn.Module.compile(method, backend="aot_eager", **arguments)

    monkeypatch.setattr("modules.methods.Method.compile", compile_)
    monkeypatch.setattr("engine.train.compiler_error", lambda device: None)
    assert main([*small(data, tmp_path / "numbers.json"), "--method", "vpt", "--compile", "--steps", "1"]) == 0
    assert compiled == ["VPT"]
    printed = capsys.readouterr().out
    assert "fp32, compiled, batch 4" in printed
    assert "compiling included" in printed


def test_without_a_compiler_one_sentence_says_so(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("engine.train.compiler_error", lambda device: ValueError("--compile needs a compiler"))
    assert main([*small(data, tmp_path / "numbers.json"), "--method", "vpt", "--compile"]) == 2
    assert capsys.readouterr().err.endswith("error: --compile needs a compiler\n")


@pytest.mark.parametrize("training", [True, False])
def test_a_reader_finds_the_made_clips_in_the_cache(tmp_path, training):
    samples = make_samples(tmp_path / "videos", 2, 1)
    fill_cache(MadeClips(3, 16, "segment", training=training, cache=FrameCache(tmp_path / "cache")), samples, 2)
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) == 2
    reader = FrameReader(3, 16, "segment", training=training, cache=FrameCache(tmp_path / "cache"))
    clips = [reader(sample.path, np.random.default_rng(0))[0] for sample in samples]
    assert all(clip.shape == (3, 3, 16, 16) for clip in clips)
    assert clips[0].float().std() > 60
    assert not torch.equal(clips[0], clips[1])
    with pytest.raises(VideoError, match="is not a video"):  # so nothing was decoded above
        replace(reader, image_size=8)(samples[0].path, np.random.default_rng(0))


def test_captions_are_unique(tmp_path):
    captions = [caption for sample in make_samples(tmp_path / "videos", 3, 50) for caption in sample.captions]
    assert len(set(captions)) == 150


@pytest.mark.parametrize(("workers", "steps", "captions"), [(8, 0, 183), (0, 0, 181), (8, 100, 16)])
def test_the_clips_have_captions_for_all_steps(workers, steps, captions):
    settings = Settings(num_thread_reader=workers, steps=steps)
    assert settings.captions == captions
    assert 1000 * captions >= 128 * (settings.warm_up_steps + settings.counted_steps) > 1000 * (captions - 1)


def test_a_whole_epoch_is_not_called_extrapolated():
    shares = dict.fromkeys(PHASES, 0.25)
    epoch = EpochTime(30.0, 18, 33.0, 1406, 179_968, 180.0, 999.8, shares, None)
    table = format_times(epoch, 1000, [6.0, 5.0], compiled=False)
    assert "180.0 s, 179,968 pairs in 1,406 steps" in table
    assert "extrapolated" not in table
    assert "180,000 pairs       181 s at this rate, extrapolated" in format_times(
        replace(epoch, msrvtt_epoch=181.0), 1000, [6.0, 5.0], compiled=False
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "stopp"], "--method 'stopp' is not one of: stop"),
        (["--clips", "0"], "--clips 0 is out of range"),
        (["--batch_size", "1"], "--batch_size 1 is out of range"),
        (["--pairs", "100"], "--pairs 100 is out of range: it takes a number at least 128"),
        (["--steps", "1407"], "--steps 1407 is out of range: it takes a number from 0 to 1406"),
        (["--num_thread_reader", "-1"], "--num_thread_reader -1 is out of range"),
        (["--max_words", "78"], "--max_words 78 is out of range: it takes a number from 3 to 77"),
        (["--precision", "int8"], "--precision"),
        (["--clip", "3"], "did you mean --clips?"),
    ],
)
def test_wrong_commands(flags, message, capsys):
    assert main(flags) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.out == ""
