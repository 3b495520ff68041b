"""A run prepares pictures as in the training of its CLIP; the log and the checkpoint say how."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dataloaders.decode import read_frames
from engine.checkpoint import read_header
from engine.cli import parse_config
from engine.data import frame_reader, normalise_for
from engine.tasks.retrieval import RetrievalSettings
from main_task_retrieval import main
from modules.clip_weights import load_clip
from modules.methods.clip4clip import CLIP4Clip
from preprocess.cache_frames import main as fill_cache
from tests.modules.hub_folder import changed, write_hub_folder
from tests.small_data import SmallData
from tools.visualize import main as visualize

PIXELS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5], "resize_mode": "squash", "interpolation": "bilinear"}
TRAINING = ["--do_train", "--epochs", "1", "--batch_size", "10"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a GELU model with heads of 80 channels that squashes its pictures."""
    folder = tmp_path_factory.mktemp("hub")
    write_hub_folder(folder, changed(vision_cfg={"width": 160, "head_width": 80}), PIXELS)
    return folder


@pytest.fixture
def bare(small_data: SmallData, tmp_path: Path) -> Path:
    """Write the small CLIP as a file that states none of its facts."""
    path = tmp_path / "bare.safetensors"
    save_file(load_file(small_data.clip), path)
    return path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return a list that receives all videos that methods encode."""
    shown: list[torch.Tensor] = []
    encode = CLIP4Clip.encode_video

    def watched(self: CLIP4Clip, video: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        shown.append(video.detach().cpu())
        return encode(self, video, frame_mask)

    monkeypatch.setattr(CLIP4Clip, "encode_video", watched)
    return shown


def test_a_run_prepares_pixels_like_open_clip(small_data: SmallData, hub: Path, tmp_path: Path, seen: list) -> None:
    """Compare the pixels of every test clip with open_clip's transform of the same frames."""
    flags = [*small_data.flags(), "--pretrained_clip_name", str(hub), "--batch_size_val", "7"]
    assert main(["--do_eval", *flags, "--output_dir", str(tmp_path)]) == 0
    videos = seen[-1]  # from the evaluation; before it, the method is compared with CLIP
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{hub}")
    config = parse_config(["--do_eval", *flags], RetrievalSettings)
    samples = config.task.list_split(config.data, "test")
    assert len(videos) == len(samples) == 7
    for video, sample in zip(videos, samples, strict=True):
        frames = read_frames(sample.path, lambda n, _: np.array([0, n // 2, n - 1]), lambda frame: frame).frames
        expected = torch.stack([transform(Image.fromarray(frame)) for frame in frames])
        std = torch.tensor(PIXELS["std"]).view(3, 1, 1)
        assert ((video - expected) * 255 * std).abs().max() < 2.01


def test_the_log_and_the_checkpoint_describe_the_clip(small_data: SmallData, hub: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = [*small_data.flags(), "--pretrained_clip_name", str(hub), "--output_dir", str(out)]
    assert main([*TRAINING, *flags]) == 0
    (line,) = (line for line in (out / "log.txt").read_text().splitlines() if f"{hub}: vision" in line)
    for part in ("2 x 160 wide, 2 heads", "; gelu;", "squashed, bilinear", "mean 0.5 0.5 0.5, deviation 0.25 0.5 0.5"):
        assert part in line
    header = read_header(out / "last.safetensors")
    assert header.backbone == load_clip(hub).backbone.facts()


def test_all_pixels_are_normalised_by_the_flags(small_data: SmallData, bare: Path, tmp_path: Path, seen: list) -> None:
    """Check training, evaluation and pictures: only with --clip_statistics none do all values lie in 0..1."""
    stated = ["--clip_activation", "quick_gelu", "--clip_statistics", "none", "--clip_resize", "squash"]
    run = [*small_data.flags(), "--output_dir", str(tmp_path / "run"), "--pretrained_clip_name", str(bare)]
    assert main([*TRAINING, *run, *stated]) == 0
    steps = len(seen)
    assert steps > 2
    checkpoint = tmp_path / "run" / "last.safetensors"
    assert visualize(["retrieval", str(checkpoint), "--output", str(tmp_path / "x.png")]) == 0
    assert len(seen) > steps
    for video in seen:
        assert video.min() >= 0
        assert 0.5 < video.max() <= 1


def test_a_bare_file_is_refused_with_the_flag_to_pass(
    small_data: SmallData, bare: Path, tmp_path: Path, capsys
) -> None:
    flags = [*small_data.flags(), "--pretrained_clip_name", str(bare), "--output_dir", str(tmp_path / "run")]
    assert main(["--do_eval", *flags]) == 2
    assert "pass --clip_activation quick_gelu" in capsys.readouterr().err
    assert main(["--do_eval", *flags, "--clip_activation", "quick_gelu"]) == 0
    assert main(["--do_eval", *flags, "--clip_activation", "relu"]) == 2
    assert "--clip_activation 'relu' is not one of: quick_gelu, gelu" in capsys.readouterr().err


def test_a_checkpoint_is_refused_if_the_same_weights_run_differently(
    small_data: SmallData, bare: Path, tmp_path: Path, capsys
) -> None:
    flags = [*small_data.flags(), "--pretrained_clip_name", str(bare), "--method", "vpt"]
    trained = tmp_path / "run" / "last.safetensors"
    assert main([*TRAINING, *flags, "--clip_activation", "gelu", "--output_dir", str(trained.parent)]) == 0
    again = ["--do_eval", "--init_model", str(trained), "--output_dir", str(tmp_path / "again")]
    assert main(again) == 0  # its own settings are the defaults
    assert main([*again, "--clip_activation", "quick_gelu"]) == 2
    error = capsys.readouterr().err
    assert "runs differently from the one given: activation is gelu there and quick_gelu here" in error


def test_resuming_is_refused_if_the_same_weights_run_differently(
    small_data: SmallData, bare: Path, tmp_path: Path, capsys
) -> None:
    flags = [*small_data.flags(), "--pretrained_clip_name", str(bare), "--output_dir", str(tmp_path / "run")]
    assert main([*TRAINING, *flags, "--clip_activation", "gelu"]) == 0
    assert main([*TRAINING, *flags, "--clip_activation", "quick_gelu", "--resume", "auto"]) == 2
    error = capsys.readouterr().err
    assert "belongs to another run: CLIP is" in error
    assert " gelu; ...' there and '... joint 24; quick_gelu; ...' here" in error


def test_a_run_uses_a_cache_that_was_filled_before(
    small_data: SmallData, hub: Path, tmp_path: Path, monkeypatch
) -> None:
    flags = [*small_data.flags(), "--pretrained_clip_name", str(hub), "--frame_cache", str(tmp_path / "frames")]
    assert fill_cache([*flags, "--do_eval", "--jobs", "1"]) == 0
    entries = set((tmp_path / "frames").rglob("*.safetensors"))
    assert len(entries) == 7
    assert main(["--do_eval", *flags, "--output_dir", str(tmp_path / "run")]) == 0
    assert set((tmp_path / "frames").rglob("*.safetensors")) == entries


def test_crop_contradicts_a_clip_that_squashes(small_data: SmallData, hub: Path) -> None:
    config = parse_config(["--do_eval", *small_data.flags(), "--frame_transform", "crop"], RetrievalSettings)
    with pytest.raises(ValueError, match="squashed to a square: pass --frame_transform resize"):
        frame_reader(config.data, load_clip(hub).backbone, training=False)


def test_a_clip_normalises_with_its_own_numbers(hub: Path) -> None:
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert normalise_for(load_clip(hub), white)[0, :, 0, 0].tolist() == pytest.approx([2.0, 1.0, 1.0])


def test_describe_names_the_clip_too(hub: Path, capsys) -> None:
    assert (
        main(["--describe", "--method", "vpt", "--pretrained_clip_name", "open_clip:ViT-H-14/laion2b_s32b_b79k"]) == 0
    )
    described = json.loads(capsys.readouterr().out)
    assert "32 x 1280 wide, 16 heads" in described["backbone"]
    assert described["total_parameters"] - described["trainable_parameters"] == 986_109_441
    assert main(["--describe", "--method", "vpt", "--pretrained_clip_name", str(hub)]) == 0
    assert "squashed, bilinear" in json.loads(capsys.readouterr().out)["backbone"]
