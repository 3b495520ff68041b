"""Weights are found in a folder and in the caches, listed once, and left out with a reason."""

import json
import shutil

import huggingface_hub
import open_clip
import pytest
import torch
from open_clip.pretrained import _PRETRAINED
from safetensors.torch import load_file, save_file

from modules import open_clip_names
from tests.modules.hub_folder import CONFIG, write_hub_folder
from tools.weights import main

REPOSITORY = "someone/A-Small-CLIP"


@pytest.fixture
def machine(small_data, tmp_path, monkeypatch):
    """Return a folder with weights of several kinds, beside empty caches."""
    for name in ("hub_cache", "url_cache", "pretrained"):
        (tmp_path / name).mkdir()
    scan, cached = huggingface_hub.scan_cache_dir, huggingface_hub.try_to_load_from_cache
    hub = tmp_path / "hub_cache"
    monkeypatch.setattr("huggingface_hub.scan_cache_dir", lambda: scan(hub))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: cached(*names, cache_dir=hub))
    monkeypatch.setattr(open_clip_names, "OPEN_CLIP_CACHE", tmp_path / "url_cache")
    tag = {**_PRETRAINED["ViT-B-32"]["openai"], "hf_hub": f"{REPOSITORY}/", "url": "https://example.org/small.pt"}
    for name in ("small-vit", "same-vit"):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, CONFIG)
        monkeypatch.setitem(_PRETRAINED, name, {"drawn": tag})
    folder = tmp_path / "pretrained"
    shutil.copy(small_data.clip, folder / "mine.safetensors")
    save_file(load_file(small_data.clip), folder / "bare.safetensors")
    (folder / "notes.txt").write_text("no weights")
    (folder / "words").mkdir()
    (folder / "words" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "half.pt").write_bytes(b"PK\x03\x04")
    return folder


def listed(capsys, *flags):
    code, (out, err) = main(list(flags)), capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


def in_the_hub_cache(folder):
    """Put open_clip's small model into the cache of the Hub, as a download does."""
    snapshot = folder.parent / "hub_cache" / "models--someone--A-Small-CLIP" / "snapshots" / ("0" * 40)
    write_hub_folder(folder.parent / "written", CONFIG)
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        shutil.copy(folder.parent / "written" / name, snapshot / name)
    return snapshot


def test_a_folder(machine, capsys):
    code, lines, left_out = listed(capsys, "--pretrained_dir", str(machine), "--max_words", "20")
    assert code == 0
    assert lines == [f"{machine}/mine.safetensors|16"]  # its context
    assert [line.split(": ")[1] for line in left_out] == [f"{machine}/bare.safetensors", f"{machine}/half.pt"]
    assert "pass --clip_activation" in left_out[0]


@pytest.mark.parametrize("kind", ["clip", "metaclip_2", "siglip", "siglip2"])
def test_a_folder_of_transformers_is_tried(machine, capsys, kind):
    folder = machine / "of transformers"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    _, _, left_out = listed(capsys, "--pretrained_dir", str(machine))
    assert any(str(folder) in line for line in left_out)


def test_a_model_in_the_cache_is_listed_once(machine, capsys):
    in_the_hub_cache(machine)
    _, lines, _ = listed(capsys, "--pretrained_dir", str(machine))
    assert lines == ["open_clip:small-vit/drawn|32", f"{machine}/mine.safetensors|16"]


def test_a_folder_of_the_cache_without_a_name(machine, capsys, monkeypatch):
    snapshot = in_the_hub_cache(machine)
    monkeypatch.delitem(_PRETRAINED, "small-vit")
    monkeypatch.delitem(_PRETRAINED, "same-vit")
    _, lines, _ = listed(capsys, "--pretrained_dir", str(machine))
    assert lines[-1] == f"{snapshot}|32"


def test_what_open_clip_downloaded_itself(machine, capsys):
    torch.save({}, machine.parent / "url_cache" / "small.pt")
    _, lines, _ = listed(capsys, "--pretrained_dir", str(machine))
    assert "open_clip:small-vit/drawn|32" in lines


def test_names(machine, capsys):
    names = [str(machine / "mine.safetensors"), "ViT-B/32", "open_clip:small-vit/drawn", "open_clip:small-vit/none"]
    code, lines, left_out = listed(capsys, "--pretrained_dir", str(machine), "--names", *names)
    assert code == 0
    assert lines == [f"{machine}/mine.safetensors|16"]
    for line, name, reason in zip(
        left_out, names[1:], ["holds no weights of ViT-B/32", "neither in", "knows no tag none"], strict=True
    ):
        assert line.startswith(f"left out: {name}: ")
        assert reason in line


def test_nothing(machine, capsys):
    code, lines, errors = listed(capsys, "--pretrained_dir", str(machine.parent / "none"))
    assert (code, lines) == (2, [])
    assert errors[-1].startswith("error: there are no weights of a backbone in ")
