"""scripts/msrvtt.sh runs with environment variables alone, on a small moving-shapes data set from its own command."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloaders.frames import FrameReader
from dataloaders.msrvtt import read_split
from dataloaders.transforms import normalise
from dataloaders.twins import read_twins
from modules.clip_weights import load_clip
from modules.methods import build_method

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "moving shapes"
    command = [sys.executable, str(ROOT / "preprocess/make_moving_shapes.py"), "--output_dir", str(folder)]
    subprocess.run([*command, "--train_pairs", "6", "--test_pairs", "3"], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("method", ["stop", pytest.param("clip4clip", marks=pytest.mark.slow)])
def test_msrvtt_script_trains_and_evaluates(world, tmp_path, method):
    results = tmp_path / "results.csv"
    environment = {
        "PYTHON": sys.executable,
        "DATA_PATH": str(world),
        "train_csv": str(world / "MSRVTT_train.csv"),
        "pretrained_clip_name": str(ROOT / "pretrained/moving_shapes_clip.safetensors"),
        "method": method,
        "epochs": "1",
        "batch_size": "20",
        "max_frames": "4",
        "feature_framerate": "0",
        "num_thread_reader": "1",
        "output_dir": str(tmp_path / "run"),
        "OMP_NUM_THREADS": "1",
    }
    flags = ["--results_csv", str(results), "--twins_csv", str(world / "twins.csv")]
    flags += ["--train_twins_csv", str(world / "train_twins.csv")]
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/msrvtt.sh"), *flags],
        env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "text-to-video" in done.stdout
    (row,) = csv.DictReader(results.open())
    assert row["method"] == method
    assert row["videos"] == "6"
    assert 0 <= float(row["t2v twins"]) <= 100
    settings = json.loads((tmp_path / "run/config.json").read_text())
    assert settings["max_frames"] == 4
    assert (tmp_path / "run/last.safetensors").is_file()


def test_reversed_pairs_are_a_coin_flip_for_a_model_that_ignores_order(world):
    """Check CLIP4Clip meanP on the same frames in both orders, decoded from two different files."""
    paths = {"data_path": world / "MSRVTT_data.json", "features_path": world / "videos"}
    splits = {"train_csv": world / "MSRVTT_train.csv", "val_csv": world / "MSRVTT_JSFUSION_test.csv"}
    samples = read_split("test", **paths, **splits)
    twin_of = read_twins(world / "twins.csv", samples)
    assert (twin_of >= 0).all()
    assert (twin_of[twin_of] == np.arange(len(samples))).all()
    method = build_method("clip4clip", load_clip(ROOT / "pretrained/moving_shapes_clip.safetensors")).eval()
    reader = FrameReader(8, method.clip.visual.image_size, "segment")
    videos, masks = zip(*(reader(sample.path) for sample in samples), strict=True)
    with torch.no_grad():
        features = method.encode_video(normalise(torch.stack(videos)), torch.stack(masks))
    features = torch.nn.functional.normalize(features, dim=-1)
    own_twin = (features * features[torch.from_numpy(twin_of)]).sum(dim=-1)
    assert (own_twin > 0.995).all()
