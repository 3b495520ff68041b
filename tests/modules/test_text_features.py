"""Files of text features: what is written is read; another CLIP, damage and nonsense are refused in one sentence."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.clip import CLIP
from modules.text_features import TextFeatures, read_text_features, text_sha256, write_text_features
from tests.tiny import TINY, tiny_clip

K, M, D = 3, 4, TINY.embed_dim


def assert_refused(path: Path, *parts: str, error: type[Exception] = ValueError, clip: CLIP | None = None) -> None:
    """Check that reading fails with one line that has the path and all `parts`."""
    with pytest.raises(error) as raised:
        read_text_features(path, clip or tiny_clip())
    message = str(raised.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message


def some_features(**changes) -> TextFeatures:
    """Return random features of three classes for the tiny CLIP."""
    features = torch.randn(K, M, D, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * M, [True, True, False, False], [True] * M])
    about = {"clip": text_sha256(tiny_clip()), "clip_name": "tiny", "templates": ["a {}."], "mode": "xmix"}
    return replace(TextFeatures(features, mask, ("a", "b", "c"), about), **changes)


def test_what_is_written_is_read(tmp_path):
    path, written = tmp_path / "texts.safetensors", some_features()
    write_text_features(path, written)
    read = read_text_features(path, tiny_clip())
    torch.testing.assert_close(read.features, written.features, rtol=0, atol=0)
    torch.testing.assert_close(read.mask, written.mask)
    assert (read.names, read.about, len(read)) == (written.names, written.about, K)


def test_a_trained_vision_tower_does_not_matter(tmp_path):
    path, clip = tmp_path / "texts.safetensors", tiny_clip()
    write_text_features(path, some_features())
    with torch.no_grad():
        clip.visual.proj.add_(1)
    assert len(read_text_features(path, clip)) == K


@pytest.mark.parametrize("architecture", [TINY, replace(TINY, activation="gelu"), replace(TINY, text_heads=1)])
def test_another_text_tower_is_refused(tmp_path, architecture):
    """One with other weights, and those that run the same weights differently."""
    path = tmp_path / "texts.safetensors"
    write_text_features(path, some_features())
    other = tiny_clip(seed=1 if architecture is TINY else 0, architecture=architecture)
    assert_refused(path, "CLIP tiny", "text tower", clip=other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_torch_file_of_one_tensor(tmp_path, caplog, dtype):
    path, features = tmp_path / "k400_tpl8_xmix.pt", some_features().features.to(dtype)
    torch.save(features, path)
    read = read_text_features(path, tiny_clip())
    torch.testing.assert_close(read.features, features.float(), rtol=0, atol=0)
    torch.testing.assert_close(read.mask, torch.ones(K, M, dtype=torch.bool))
    assert (read.names, read.about) == (None, {})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{path} names neither its classes nor its CLIP" in record.getMessage()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (torch.ones(K, D), "[3, 24]"),
        (torch.ones(K, M, D, dtype=torch.int64), "int64"),
        (torch.ones(K, 0, D), "[3, 0, 24]"),
        (torch.ones(K, M, D + 1), "25 numbers"),
        (torch.zeros(K, M, D), "12 of its 12"),
        (torch.full((K, M, D), float("nan")), "12 of its 12"),
        (torch.ones(K, M, D).to_sparse(), "torch.sparse_coo"),
        (torch.ones(K, M, D, device="meta"), "does not hold each number"),
        (torch.ones(1, 1, D).expand(K, 10**9, D), "96 bytes"),  # would take 290 GB
        ({"features": torch.ones(K, M, D)}, "holds a dict"),
        (pytest, "neither"),
    ],
)
def test_other_torch_files_are_refused(tmp_path, content, told):
    path = tmp_path / "texts.pt"
    if content is pytest:
        path.write_bytes(b"not a pickle")
    else:
        torch.save(content, path)
    assert_refused(path, told)


def test_code_in_a_torch_file_is_not_run(tmp_path):
    path = tmp_path / "texts.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    assert_refused(path, "torch file of one tensor")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mask": torch.ones(K, M)}, "mask is torch.float32"),
        ({"mask": torch.ones(K, M + 1, dtype=torch.bool)}, "[3, 5]"),
        ({"mask": torch.zeros(K, M, dtype=torch.bool)}, "a text for each class"),
        ({"names": ("a", "b")}, "3 rows and 2 names"),
        ({"features": torch.zeros(K, M, D)}, "12 of its 12"),
    ],
)
def test_a_file_that_contradicts_itself(tmp_path, changes, told):
    path = tmp_path / "texts.safetensors"
    write_text_features(path, some_features(**changes))
    assert_refused(path, told)


def test_missing_foreign_and_damaged_files(tmp_path):
    path = tmp_path / "texts.safetensors"
    assert_refused(path, "text_features.py", error=FileNotFoundError)
    save_file({"features": torch.ones(K, M, D)}, path)
    assert_refused(path, "not a file of text features")
    write_text_features(path, some_features())
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert_refused(path, "is damaged")
    path.write_bytes(content[:300])
    assert_refused(path, "not a readable safetensors file")


def test_another_version_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "texts.safetensors"
    monkeypatch.setattr("modules.text_features.VERSION", "2")
    write_text_features(path, some_features())
    monkeypatch.undo()
    assert_refused(path, "version 2")
