"""The script of post-pretraining: its values, and a run from it that a fine-tuning starts from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from main_task_retrieval import main
from tests.launch_scripts import commands_of, settings_of, write_recorder
from tests.small_shards import clips_of, write_shards
from tests.training_runs import METHODS

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "post_pretrain.sh"


@pytest.fixture
def recorder(tmp_path) -> tuple[Path, Path]:
    return write_recorder(tmp_path)


def test_the_values_are_those_of_webvid(recorder):
    (command,) = commands_of(
        SCRIPT, recorder, "--resume", "auto", shard_cache="/fast/shards", train_shards="https://a/b"
    )
    settings = settings_of(command)
    expected = {
        "do_train": True, "datatype": "msrvtt", "train_shards": "https://a/b", "shard_cache": "/fast/shards",
        "shard_streams": 16, "shard_cache_gb": 100, "epochs": 4, "batch_size": 384, "lr": 4e-5, "coef_lr": 0.1,
        "weight_decay": 0.05, "max_grad_norm": 5, "warmup_proportion": 0.125, "max_words": 64, "max_frames": 8,
        "frame_sampling": "segment", "feature_framerate": 0, "save_every": 1000, "resume": "auto",
        "expand_msrvtt_sentences": False, "train_csv": "", "val_csv": "data/msrvtt/MSRVTT_JSFUSION_test.csv",
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected


def test_stan_has_its_own_flags(recorder):
    (command,) = commands_of(SCRIPT, recorder, method="mug_stan")
    words = " ".join(command)
    assert "--method mug_stan" in words
    assert "--tau 0.01 --crop_scale 0.08" in words
    assert "--shard_cache " not in words


@pytest.mark.slow
def test_it_trains_and_a_fine_tuning_starts_from_it(small_data, tmp_path):
    write_shards(tmp_path / "shards", clips_of(small_data, 4), [10] * 4)
    own = {
        "PYTHON": sys.executable, "NGPU": "1", "train_shards": str(tmp_path / "shards"), "method": "clip4clip",
        "val_csv": str(small_data.folder / "MSRVTT_JSFUSION_test.csv"), "features_path": str(small_data.videos),
        "data_path": str(small_data.folder / "MSRVTT_data.json"), "pretrained_clip_name": str(small_data.clip),
        "epochs": "1", "batch_size": "16", "max_words": "12", "max_frames": "3", "num_thread_reader": "1",
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    subprocess.run(["bash", str(SCRIPT)], env=os.environ | own, check=True, cwd=tmp_path)
    first = ["--init_model", str(tmp_path / "run" / "last.safetensors")]
    flags = ["--do_train", *small_data.flags(), *METHODS["clip4clip"], "--epochs", "1", "--batch_size", "4", *first]
    assert main([*flags, "--output_dir", str(tmp_path / "tuned")]) == 0
    assert "weights from" in (tmp_path / "tuned" / "log.txt").read_text()
