"""The scripts of action recognition: the settings, folders and rows that they promise."""

import re
from pathlib import Path

import pytest

from tests.launch_scripts import commands_of, settings_of, write_recorder

ROOT = Path(__file__).parent.parent


@pytest.fixture
def recorder(tmp_path) -> tuple[Path, Path]:
    return write_recorder(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # data set, epochs, global batch size, views of the last evaluation
        ("hmdb51", ("hmdb51", 30, 64, "3x1")),
        ("ucf101", ("ucf101", 20, 64, "3x1")),
        ("ssv2", ("ssv2", 20, 128, "1x3")),
        ("k400", ("kinetics400", 10, 256, "4x3")),
    ],
)
def test_the_settings_of_recognition(recorder, name, expected):
    (command,) = commands_of(ROOT / "scripts" / f"{name}.sh", recorder, DATA_PATH="/data/x")
    settings = settings_of(command)
    assert tuple(settings[setting] for setting in ("datatype", "epochs", "batch_size", "test_views")) == expected
    common = {
        "do_train": True, "do_eval": False, "method": "stop", "split": 1, "shots": 0, "classes": "all", "lr": 1e-3,
        "coef_lr": 5e-3, "weight_decay": 0.2, "warmup_proportion": 0.1, "schedule": "warmup_cosine",
        "max_grad_norm": 1.0, "max_frames": 8, "frame_sampling": "segment", "crop_scale": 0.5, "flip": "mapped",
        "mixup_alpha": 0.0, "cutmix_alpha": 0.0, "templates": "", "class_names": "split", "classifier": "text",
        "view_fusion": "logits", "select_on": "last", "data_path": "/data/x", "features_path": "/data/x/videos",
    }  # fmt: skip
    assert {setting: settings[setting] for setting in common} == common


@pytest.mark.parametrize("name", ["hmdb51", "ucf101", "ssv2", "k400"])
@pytest.mark.parametrize(
    ("outside", "expected"),
    [  # split, shots, classes, epochs, views of the last evaluation, folder
        ({"shots": "4", "split": "2"}, (2, 4, "all", 50, "1x1", "_split2_4shots")),
        ({"classes": "base"}, (1, 16, "base", 12, "1x1", "_base_16shots")),
        (
            {"classes": "base", "shots": "8", "epochs": "3", "test_views": "2x1"},
            (1, 8, "base", 3, "2x1", "_base_8shots"),
        ),
    ],
)
def test_few_videos_of_recognition(recorder, name, outside, expected):
    (command,) = commands_of(ROOT / "scripts" / f"{name}.sh", recorder, **outside)
    settings = settings_of(command)
    names = ("split", "shots", "classes", "epochs", "test_views", "output_dir")
    assert tuple(settings[setting] for setting in names) == (*expected[:-1], f"runs/{name}_stop{expected[-1]}")
    assert settings["batch_size"] == 64


@pytest.mark.parametrize(("name", "expected"), [("ucf101", (20, 64, "3x1")), ("k400", (10, 256, "4x3"))])
def test_all_videos_of_the_base_half(recorder, name, expected):
    (command,) = commands_of(ROOT / "scripts" / f"{name}.sh", recorder, classes="base", shots="0")
    settings = settings_of(command)
    assert (settings["classes"], settings["shots"]) == ("base", 0)
    assert tuple(settings[setting] for setting in ("epochs", "batch_size", "test_views")) == expected
    assert settings["output_dir"] == f"runs/{name}_stop_base"


def test_runs_of_different_protocols_have_different_folders(recorder, tmp_path):
    classes = tmp_path / "some.txt"
    protocols = [
        {}, {"split": "2"}, {"shots": "4"}, {"classes": "base"}, {"classes": "half:3"}, {"classes": str(classes)},
        {"mode": "eval"}, {"split": "3", "shots": "2", "classes": "base"},
    ]  # fmt: skip
    script = ROOT / "scripts/hmdb51.sh"
    settings = [settings_of(commands_of(script, recorder, **outside)[-1]) for outside in protocols]
    folders = [row["output_dir"].removeprefix("runs/hmdb51_stop") for row in settings]
    expected = ["", "_split2", "_4shots", "_base_16shots", "_half_3", "_some", "_eval", "_split3_base_2shots"]
    assert folders == expected


def test_kinetics_600_has_a_folder_of_its_own(recorder):
    for datatype, name in (("kinetics400", "k400"), ("kinetics600", "k600")):
        settings = settings_of(commands_of(ROOT / "scripts/k400.sh", recorder, datatype=datatype)[-1])
        assert settings["data_path"] == f"data/{name}"
        assert (settings["features_path"], settings["output_dir"]) == (f"data/{name}/videos", f"runs/{name}_stop")


def test_recognition_without_training(recorder):
    outside = {"mode": "eval", "method": "clip4clip", "templates": "a shape {}", "datatype": "kinetics600"}
    (command,) = commands_of(ROOT / "scripts/k400.sh", recorder, "--view_fusion", "softmax", **outside)
    settings = settings_of(command)
    assert (settings["do_train"], settings["do_eval"]) == (False, True)
    assert (settings["data_path"], settings["output_dir"]) == ("data/k600", "runs/k600_clip4clip_eval")
    assert "--classifier" not in command  # a checkpoint's own counts
    assert (settings["templates"], settings["datatype"], settings["view_fusion"]) == (
        "a shape {}",
        "kinetics600",
        "softmax",
    )


def test_the_rows_of_recognition(recorder, tmp_path):
    """Check that all rows have the same data, frames and batches, and that the flags are those that a name promises."""
    script, results = ROOT / "scripts/recognition_moving_actions.sh", str(tmp_path / "results.csv")
    ran = commands_of(script, recorder, results=results, seeds="3", epochs="4", JOBS="1")
    assert ran[0][:2] == ["preprocess/make_moving_actions.py", "--output_dir"]
    rows = {row["row_name"]: row for row in (settings_of(command) for command in ran if "main_task" in command[0])}
    assert len(rows) == 14
    for name, row in rows.items():
        assert (row["datatype"], row["max_frames"], row["batch_size"], row["seed"]) == ("ucf101", 8, 16, 3)
        assert (row["templates"], row["crop_scale"], row["test_views"]) == ("a shape {}", 1.0, "1x1")
        assert row["do_eval"] == name.startswith("zero-shot") != row["do_train"]
        assert row["shots"] == (int(found[1]) if (found := re.search(r"(\d+) shots", name)) else row["shots"])
        assert (row["classes"] == "base") == name.endswith("base to novel")
        assert row["results_csv"] == results.replace(
            ".csv", "_base_to_novel.csv" * (row["classes"] == "base") or ".csv"
        )
        assert row["epochs"] == (4 * 256 // row["shots"] // 4 if row["shots"] else 8 if "twice" in name else 4)
    flips = {name: row["flip"] for name, row in rows.items() if row["flip"] != "none"}
    assert flips == {"STOP, naive flips": "plain_despite_map", "STOP, mapped flips": "mapped"}
    assert [name for name, row in rows.items() if row["classifier"] == "linear"] == ["STOP, linear head"]
    assert {row["method"] for row in rows.values()} == {"clip4clip", "vpt", "stop"}
    assert len({row["output_dir"] for row in rows.values()}) == len(rows)


def test_the_rows_of_stdd(recorder, tmp_path):
    """Check that a row differs from the others in what its name says, and that averages are those of its training."""
    results, runs = str(tmp_path / "results.csv"), str(tmp_path / "runs")
    ran = commands_of(
        ROOT / "scripts/stdd_moving_actions.sh", recorder, results=results, runs=runs, seeds="3 4", epochs="6",
        average="2-6", how="gwa", JOBS="1",
    )  # fmt: skip
    assert [command[0] for command in ran[:3]] == [
        "preprocess/make_moving_actions.py", "preprocess/text_features.py", "preprocess/text_features.py"
    ]  # fmt: skip
    texts = {command[command.index("--mode") + 1]: command[command.index("--output") + 1] for command in ran[1:3]}
    commands = {tuple(command[place] for place in (2, 4)): command for command in ran if "main_task" in command[0]}
    assert len(commands) == 3 + 2 * 10
    rows = {key: settings_of(command) for key, command in commands.items()}
    averages = {command[2]: command for command in ran if command[:2] == ["-m", "engine.average"]}
    same = {
        "datatype": "ucf101", "classes": "base", "shots": 64, "epochs": 6, "batch_size": 16, "coef_lr": 1.0,
        "max_frames": 8, "templates": "a shape {}", "results_csv": results,
    }  # fmt: skip
    for (name, seed), row in rows.items():
        assert {key: row[key] for key in same} == same
        assert (row["row_name"], row["seed"], row["shots_seed"]) == (name, int(seed), int(seed))
        bag = {"augmented": texts["xmix"], "in a bag": texts["name"]}
        features = next((file for part, file in bag.items() if part in name), "")
        assert (row["text_features"], row["classifier"]) == (features, "bag" if features else "text")
        assert row["method"] == ("clip4clip" if name.startswith("zero-shot") else "stdd")
        assert row.get("temporal") == {"z": None, "n": "none", "S": "stcross_attend"}[name[0]]
        trains = not name.startswith("zero-shot") and not name.endswith("averaged")
        assert (row["do_train"], row["do_eval"], row["save_every_epoch"]) == (trains, not trains, trains)
        if name.endswith(", averaged"):
            trained = rows[name.removesuffix(", averaged"), seed]["output_dir"]
            output = f"{trained}/averaged.safetensors"
            assert averages[trained][3:] == ["--how", "gwa", "--epochs", "2-6", "--output", output]
            command = commands[name, seed]
            assert command[command.index("--init_model") + 1] == output
    assert len({row["output_dir"] for row in rows.values()}) == len(rows)
