"""The comparison of backbones: each has its own floor, its own words and its own row."""

import json

import pytest

from benchmarks import backbones
from benchmarks.backbones import Settings, main
from benchmarks.operations import count_step
from benchmarks.training_step import make_floor
from modules.clip import CLIP
from modules.clip_weights import architecture_of
from tests.backbones import FAMILIES
from tests.tiny import tiny_batch


@pytest.mark.parametrize("family", FAMILIES)
def test_the_floor_runs_the_whole_tower_of_every_family(family, monkeypatch):
    architecture = FAMILIES[family]
    towers, forward = [], CLIP.__init__
    monkeypatch.setattr(CLIP, "__init__", lambda self, *sizes: (forward(self, *sizes), towers.append(self))[0])
    floor = make_floor(architecture, tiny_batch(architecture=architecture)[0].byte(), "fp32")
    (clip,) = towers
    pooled = []
    clip.visual.ln_post.register_forward_hook(lambda module, arguments, out: pooled.append(out.shape))
    floor()
    read = architecture.class_tokens + architecture.grid**2
    assert pooled == [(12, architecture.vision_width) if family == "clip" else (12, read, architecture.vision_width)]


def test_the_whole_command(small_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(backbones, "in_own_process", lambda function, *arguments: function(*arguments))
    output = tmp_path / "backbones.json"
    flags = ["--backbones", f"{small_data.clip},{small_data.clip}", "--only", "vpt --text_prompt_length 2"]
    flags += ["--batch_size", "2", "--frames", "2", "--max_words", "99", "--repeats", "1", "--output", str(output)]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    written = json.loads(output.read_text())
    (row,) = written["backbones"]
    assert row["max_words"] == 16, "the tiny CLIP reads no more"
    operations = count_step("vpt", architecture_of(str(small_data.clip)), 2, 16, text_prompt_length=2)
    assert row["gflop_step"] * 1e9 == operations
    assert row["floor_ratio"] > 0
    assert "ceiling_share" not in row
    header, line = (line.split() for line in printed.splitlines()[-2:])
    assert header[0] == "backbone"
    assert "ceiling" not in header
    assert line[0] == str(small_data.clip)
    assert written["commit"] in printed


def test_words_of_a_backbone():
    settings = Settings(batch_size=1)
    words = {name: settings.on(name).max_words for name in settings.names}
    assert words == {
        "ViT-B/32": 32, "ViT-B/16": 32, "open_clip:PE-Core-B-16/meta": 32, "open_clip:ViT-B-32-SigLIP2-256/webli": 64
    }  # fmt: skip


def test_a_method_that_does_not_run_there(capsys):
    assert main(["--only", "stan", "--backbones", "open_clip:ViT-B-16-SigLIP/webli", "--output="]) == 2
    assert "open_clip:ViT-B-16-SigLIP/webli: method stan needs a class token" in capsys.readouterr().err
