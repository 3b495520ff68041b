"""The scripts of STDD: the preset of its release, and the table of its zero-shot protocols."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.launch_scripts import commands_of, settings_of, write_recorder

ROOT = Path(__file__).parent.parent
ZERO_SHOT = ROOT / "scripts" / "stdd_zero_shot.sh"


@pytest.fixture
def recorder(tmp_path) -> tuple[Path, Path]:
    return write_recorder(tmp_path)


def test_the_preset_is_that_of_the_release(recorder):
    (command,) = commands_of(ROOT / "scripts/stdd_k400.sh", recorder)
    settings = settings_of(command)
    expected = {
        "do_train": True, "method": "stdd", "pretrained_clip_name": "ViT-B/16", "datatype": "kinetics400",
        "temporal": "stcross_attend", "rate": 0.5, "fold": 32, "scales": "1,2", "clamp_logit_scale": False,
        "distill": "none", "distill_ratio": 2.0, "epochs": 22, "batch_size": 32, "lr": 3.33e-6, "coef_lr": 1.0,
        "weight_decay": 0.01, "adam_beta2": 0.999, "adam_eps": 1e-8, "schedule": "one_percent", "max_grad_norm": 1.0,
        "precision": "fp16", "precision_val": "fp32", "max_frames": 8, "frame_sampling": "slowfast",
        "frame_stride": 16, "feature_framerate": 0, "frame_transform": "bilinear", "short_side_max": 256,
        "crop_scale": 1.0, "flip": "plain_despite_map", "flip_probability": 0.5, "test_views": "3x1",
        "view_fusion": "logits", "seed": 0, "select_on": "last", "output_dir": "runs/k400_stdd",
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected
    assert settings["warmup_proportion"] * 22 == pytest.approx(2, abs=1e-6)


def zero_shot(recorder, folder: Path, *arguments: str, **environment: str) -> list[dict]:
    """Run the script in `folder`; return the settings of its evaluations."""
    make(folder, "model.bin")
    ran = commands_of(
        ZERO_SHOT, recorder, str(folder / "model.bin"), *arguments, results=str(folder / "r.csv"), **environment
    )
    return [settings_of(command) for command in ran if "main_task" in command[0]]


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix else path.mkdir()


def test_all_protocols(recorder, tmp_path):
    make(tmp_path, "data/ucf101", "data/hmdb51", "data/k400", "data/k600")
    lists = [
        f"data/k600/zero_shot/{name}" for n in (1, 2, 3) for name in (f"k600_split{n}.txt", f"ZS_split{n}_K600.csv")
    ]
    make(tmp_path, *lists)
    rows = zero_shot(recorder, tmp_path, "--ensemble_clip", "0.2", draws="0 9")
    assert all(row["do_eval"] and row["init_model"] == str(tmp_path / "model.bin") for row in rows)
    assert {(row["test_views"], row["ensemble_clip"], row["classifier"]) for row in rows} == {("3x1", 0.2, "text")}
    assert len({row["output_dir"] for row in rows}) == len(rows) == 18
    draws = [row for row in rows if row["classes"].startswith("half")]
    rows = [row for row in rows if row not in draws]
    assert {
        (row["row_name"], row["datatype"], row["classes"], row["test_videos"], row["split"], row["seed"])
        for row in draws
    } == {
        (f"{name}, draws of {count} classes", name.lower(), f"half:{number}", "all", 1, number)
        for name, count in (("UCF101", 50), ("HMDB51", 25))
        for number in (0, 9)
    }
    of_splits = {
        (row["row_name"], row["datatype"], row["split"], Path(row["val_csv"]).name, Path(row["labels_csv"]).name)
        for row in rows
        if "3 " in row["row_name"]
    }
    assert of_splits == {
        *(("UCF101, 3 splits", "ucf101", n, "", "") for n in (1, 2, 3)),
        *(("HMDB51, 3 splits", "hmdb51", n, "", "") for n in (1, 2, 3)),
        *(
            ("Kinetics-600, 3 lists of 160 classes", "kinetics600", 1, f"k600_split{n}.txt", f"ZS_split{n}_K600.csv")
            for n in (1, 2, 3)
        ),
    }
    others = {row["row_name"]: row for row in rows if "3 " not in row["row_name"]}
    assert {name: (row["split"], row["test_videos"], row["classes"]) for name, row in others.items()} == {
        "UCF101, all videos": (1, "all", "all"),
        "HMDB51, all videos of split 1": (1, "all", "all"),
        "Kinetics-400, validation": (1, "test", "all"),
        "UCF101, base to novel": (1, "test", "base"),
        "HMDB51, base to novel": (1, "test", "base"),
    }
    assert {row["results_csv"] for row in rows if row["classes"] == "base"} == {str(tmp_path / "r_base_to_novel.csv")}


def test_rows_without_their_text_features_are_left_out(recorder, tmp_path):
    make(tmp_path, "data/ucf101", "data/k600", "texts/ucf101.safetensors", "data/hmdb51")
    rows = zero_shot(recorder, tmp_path, classifier="bag", text_features="texts/{}.safetensors", draws="0")
    assert {row["datatype"] for row in rows} == {"ucf101"}
    assert {row["text_features"] for row in rows} == {"texts/ucf101.safetensors"}
    assert len(rows) == 3 + 1 + 1 + 1


def test_there_are_ten_draws_of_half_of_the_classes(recorder, tmp_path):
    make(tmp_path, "data/hmdb51", "model.bin")
    commands = commands_of(ZERO_SHOT, recorder, "model.bin", only="draws", results=str(tmp_path / "r.csv"))
    classes = [command[command.index("--classes") + 1] for command in commands if "--classes" in command]
    assert classes == [f"half:{number}" for number in range(10)]


def test_a_data_set_can_lie_in_a_folder_with_a_space(recorder, tmp_path):
    make(tmp_path, "my data/ucf101")
    rows = zero_shot(recorder, tmp_path, ucf101="my data/ucf101", only="all videos")
    assert [row["features_path"] for row in rows] == ["my data/ucf101/videos"]


def told_by(folder: Path, recorder) -> subprocess.CompletedProcess[str]:
    """Run the script in `folder` with the checkpoint model.bin, and of its rows one whose data set is not there."""
    return subprocess.run(
        ["bash", str(ZERO_SHOT), "model.bin"], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHON": str(recorder[0]), "NGPU": "1", "only": "Kinetics-400"},
    )  # fmt: skip


def test_the_names_of_what_is_left_out(tmp_path, recorder):
    make(tmp_path, "data/ucf101", "model.bin")
    done = told_by(tmp_path, recorder)
    assert done.returncode == 0
    told = [line for line in done.stdout.splitlines() if line.startswith("left out: ")]
    assert told[0] == "left out: HMDB51, 3 splits (no data/hmdb51)"
    assert "left out: Kinetics-600, 3 lists of 160 classes (no data/k600)" in told
    assert len(told) == 6


def test_a_checkpoint_or_all_data_sets_that_are_missing_are_an_error(tmp_path, recorder):
    done = told_by(tmp_path, recorder)
    assert done.returncode == 2
    assert done.stderr == "error: there is no checkpoint model.bin: name one as the first argument\n"
    assert not (tmp_path / "results").exists()
    make(tmp_path, "model.bin")
    done = told_by(tmp_path, recorder)
    assert done.returncode == 1
    assert done.stderr.startswith("error: none of the data sets is there")
    assert not (tmp_path / "results").exists()
