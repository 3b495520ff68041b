"""Weights given to the wrong flag are refused with one sentence that names the right flag."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.checkpoint import CheckpointHeader, ResumePoints, save_checkpoint
from engine.file_formats import FLAG_OF, kind_of_weights
from main_task_retrieval import main
from modules.clip_weights import to_openai_keys
from modules.methods import build_method
from tests.tiny import tiny_clip

CHECKPOINT, RELEASED, POINT, CLIP = FLAG_OF


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, tuple[Path, str]]:
    """Write files of all kinds; return each path and its kind, by name."""
    folder = tmp_path_factory.mktemp("files")
    clip = tiny_clip()
    method = build_method("clip4clip", clip)
    weights = {name: tensor.contiguous() for name, tensor in to_openai_keys(clip.state_dict()).items()}
    released = {method.released_name(name): tensor for name, tensor in method.state_dict().items()}
    save_checkpoint(folder / "last.safetensors", method, CheckpointHeader({}, 1, "a" * 64))
    ResumePoints(folder, {}, 1).save(5, {"tensors": weights})
    save_file(weights, folder / "clip.safetensors")
    torch.save(weights, folder / "clip.pt")
    torch.save(weights, folder / "clip_old.pt", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": {f"module.{n}": t for n, t in weights.items()}, "epoch": 3}, folder / "epoch_3.pt")
    torch.save({"model_state_dict": weights}, folder / "nested.pt")
    torch.save(released, folder / "pytorch_model.bin.4")
    torch.save({"state_dict": {f"module.{n}": t for n, t in released.items()}}, folder / "ckpt.best.pth.tar")
    torch.save({"meta": {}, "state_dict": {"backbone.STAN_time_embed.weight": torch.ones(64, 2)}}, folder / "stan.pth")
    torch.save({"model": {"image_encoder.conv1.weight": torch.ones(2)}, "epoch": 9}, folder / "tc_clip.pth")
    save_file({"x": torch.zeros(1)}, folder / "foreign.safetensors")
    torch.save({"x": torch.zeros(1)}, folder / "foreign.pt")
    (folder / "text.pt").write_text("no weights")
    (folder / "empty.pt").touch()
    kinds = {
        "last.safetensors": CHECKPOINT, "step_00000005.pt": POINT, "pytorch_model.bin.4": RELEASED,
        "ckpt.best.pth.tar": RELEASED, "stan.pth": RELEASED, "tc_clip.pth": RELEASED, "clip.safetensors": CLIP,
        "clip.pt": CLIP, "clip_old.pt": CLIP, "epoch_3.pt": CLIP, "nested.pt": CLIP,
    }  # fmt: skip
    return {path.name: (path, kinds.get(path.name, "")) for path in folder.iterdir()}


class _Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 4, 2)


class _Archive(torch.nn.Module):
    """Some parts of OpenAI's archive, under its names."""

    def __init__(self):
        super().__init__()
        self.visual, self.token_embedding = _Tower(), torch.nn.Embedding(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_kind_is_recognised(files, tmp_path):
    assert len(files) == 15
    for path, kind in files.values():
        assert (kind_of_weights(path) or "") == kind, path.name
    torch.jit.script(_Archive()).save(str(tmp_path / "ViT-B-32.pt"))
    assert kind_of_weights(tmp_path / "ViT-B-32.pt") == CLIP


@pytest.mark.parametrize("flag", ["--init_model", "--resume", "--pretrained_clip_name"])
def test_a_file_given_to_the_wrong_flag(small_data, files, tmp_path, capsys, flag):
    task = ["--do_train"] if flag == "--resume" else ["--do_eval"]
    one_of_each = {kind: path for path, kind in sorted(files.values()) if kind and FLAG_OF[kind] != flag}
    assert len(one_of_each) >= 2
    for kind, path in one_of_each.items():
        flags = [*task, *small_data.flags(), "--output_dir", str(tmp_path / "run"), "--batch_size", "4"]
        assert main([*flags, flag, str(path)]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith(f"error: {path}: ")
        assert message.endswith(f"; it is {kind}, which {FLAG_OF[kind]} takes")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--init_model", "--resume", "--pretrained_clip_name"])
def test_a_file_that_no_flag_takes_is_named(small_data, files, tmp_path, capsys, flag):
    task = ["--do_train"] if flag == "--resume" else ["--do_eval"]
    for path, kind in files.values():
        if not kind:
            flags = [*task, *small_data.flags(), "--output_dir", str(tmp_path / "run"), "--batch_size", "4"]
            assert main([*flags, flag, str(path)]) == 2
            message = capsys.readouterr().err.splitlines()[-1]
            assert path.name in message
            assert "takes" not in message.replace("--resume takes", "")


def test_nothing_in_a_file_is_executed(tmp_path):
    """Check that the names are read without unpickling."""

    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"visual.conv1.weight": Hostile()}, tmp_path / "hostile.pt")
    assert kind_of_weights(tmp_path / "hostile.pt") == CLIP
    assert not (tmp_path / "executed").exists()
