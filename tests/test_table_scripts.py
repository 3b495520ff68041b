"""The scripts of the comparison search a learning rate for each row and train it with the best one."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from engine.flags import PICTURES
from modules.methods import METHODS
from tests.launch_scripts import commands_of, settings_of, write_recorder

SCRIPTS = Path(__file__).parent.parent / "scripts"
FAMILIES = "^(zero-shot|CLIP4Clip|T-MASS|STAN|VoP|Efficient Prompt|TempMe|STOP)$"  # a row of each, and two more


def recorded(tmp_path, script, **environment):
    """Return the settings of a script's trainings, with a Python that finds 6e-4 to be the best rate."""
    python, record = write_recorder(tmp_path)
    answer = 'case "$*" in *"tools.rates best"*) echo 6e-4 ;; esac\n'
    python.write_text(python.read_text() + answer)
    results = str(tmp_path / "table.csv")
    commands = commands_of(SCRIPTS / script, (python, record), results=results, **environment)
    found = [settings_of(command) for command in commands if "main_task" in command[0]]
    searched = [settings for settings in found if settings["select_on"] == "holdout"]
    added = [command for command in commands if command[1:3] == ["tools.rates", "add"]]
    assert Counter(Path(command[3]).resolve() for command in added) == Counter(
        Path(settings["output_dir"]).resolve() for settings in searched
    )
    return searched, [settings for settings in found if settings["select_on"] != "holdout"], commands


@pytest.mark.parametrize("script", ["table_moving_shapes.sh", "table_moving_actions.sh", "table_msrvtt.sh"])
def test_every_row_gets_the_best_of_three_rates(script, tmp_path):
    searched, trained, commands = recorded(tmp_path, script, only=FAMILIES)
    rates = {}
    for settings in searched:
        assert settings["seed"] == 0
        name, _, rate = settings["row_name"].rpartition(", lr ")
        assert float(rate) == settings["lr"]
        rates.setdefault(name, set()).add(settings["lr"])
    assert all(len(values) == 3 for values in rates.values())
    assert len(rates) == 7
    names = Counter(settings["row_name"] for settings in trained)
    assert names.pop("zero-shot") == 1
    assert names == dict.fromkeys(rates, 3), "three seeds"
    assert {settings["lr"] for settings in trained if settings["do_train"]} == {6e-4}
    assert {settings["select_on"] for settings in trained} == {"last"}
    same = ("batch_size", "max_frames", "max_words", "frame_sampling", "feature_framerate", "schedule")
    assert len({tuple(settings[name] for name in same) for settings in [*searched, *trained]}) == 1
    (epochs,), (of_search,) = ({settings["epochs"] for settings in runs} for runs in (trained, searched))
    assert of_search == (epochs if script == "table_msrvtt.sh" else epochs / 2)
    assert commands[-1][1] == "tools.table"
    assert ("--benchmark" in commands[-1]) == ("actions" not in script), "steps are measured on retrieval"


@pytest.mark.parametrize("script", ["table_moving_shapes.sh", "table_msrvtt.sh"])
def test_a_benchmark_that_is_not_there_is_refused_before_a_run(script, tmp_path):
    python, _ = write_recorder(tmp_path)
    paths = {"results": f"{tmp_path}/table.csv", "runs": f"{tmp_path}/runs", "benchmark": "results/steps.json"}
    done = subprocess.run(
        ["bash", str(SCRIPTS / script)],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "NGPU": "1", **paths},
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "benchmark: there is no file results/steps.json" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_zero_shot_alone_needs_no_rate(tmp_path):
    searched, (zero_shot,), _ = recorded(tmp_path, "table_moving_shapes.sh", only="^zero-shot$")
    assert not searched
    assert not zero_shot["do_train"]


def test_own_protocols_differ_where_the_papers_do(tmp_path):
    searched, trained, _ = recorded(tmp_path, "table_msrvtt.sh", protocol="own", seeds="42")
    assert not searched
    rows = {settings["row_name"]: settings for settings in trained}
    left_out = {"mug_stan", "stan", "stdd", "tc_clip", "discovla"}  # scripts of their own, recognition, no captions
    assert {settings["method"] for settings in trained} == METHODS.keys() - left_out
    assert rows["CLIP4Clip"]["lr"] * rows["CLIP4Clip"]["coef_lr"] == pytest.approx(1e-7)
    assert rows["CLIP4Clip"]["feature_framerate"] == 1
    assert rows["Bias, learning rate not published"]["coef_lr"] == 1, "all that it trains came with CLIP"
    assert rows["DGL-Transformer"]["batch_size"] == 512
    assert rows["DGL-Transformer"]["lr"] == 2e-3
    assert rows["VoP, learning rate not published"]["batch_size"] == 32
    assert rows["TempMe"]["adam_eps_uncorrected"]
    assert rows["T-MASS"]["lr"] * rows["T-MASS"]["coef_lr"] == pytest.approx(1e-6, rel=0.01)
    assert "STAN" not in rows, "scripts/stan_msrvtt_released.sh is its own protocol"


def test_own_protocols_of_some_rows(tmp_path):
    """Check that `only` holds for zero-shot too, and that what no protocol fixes reaches every row."""
    names = {}
    for only in ("^DGL", "^zero-shot$|^LoRA$"):
        folder = tmp_path / only[1:4]
        folder.mkdir()
        _, trained, _ = recorded(folder, "table_msrvtt.sh", protocol="own", seeds="42", only=only, epochs="8")
        names[only] = [row["row_name"] for row in trained]
        assert {row["epochs"] for row in trained} == {8}
    assert names == {"^DGL": ["DGL-Linear", "DGL-Transformer"], "^zero-shot$|^LoRA$": ["zero-shot", "LoRA"]}


@pytest.mark.parametrize("ending", PICTURES)
def test_a_chart_of_every_kind(tmp_path, ending):
    chart = str(tmp_path / f"chart{ending}")
    _, _, commands = recorded(tmp_path, "table_msrvtt.sh", only="^zero-shot$", chart=chart)
    assert commands[-1][-2:] == ["--chart", chart]


def test_discovla_needs_captions_of_frames(tmp_path):
    _, trained, _ = recorded(tmp_path, "table_moving_shapes.sh", only="^(DiscoVLA|LoRA)$", seeds="0")
    assert {settings["method"] for settings in trained} == {"lora"}
    captions = tmp_path / "frame_captions.json"
    captions.write_text("{}")
    other = tmp_path / "other"
    other.mkdir()
    _, trained, _ = recorded(
        other, "table_moving_shapes.sh", only="^(DiscoVLA|LoRA)$", seeds="0", frame_captions=str(captions)
    )
    assert {settings["method"] for settings in trained} == {"lora", "discovla"}
    assert {settings["frame_captions"] for settings in trained if settings["method"] == "discovla"} == {str(captions)}


def test_the_zero_shot_table_has_a_row_of_each_backbone(tmp_path):
    python, record = write_recorder(tmp_path)
    answer = 'case "$*" in *"tools.weights"*) printf "%s\\n" "ViT-B/32|32" "open_clip:PE-Core-B-16/meta|30" ;; esac\n'
    python.write_text(python.read_text() + answer)
    results = str(tmp_path / "table.csv")
    asked = {"backbones": "ViT-B/32 open_clip:PE-Core-B-16/meta", "DATA_PATH": "/data/my videos", "results": results}
    script = SCRIPTS / "zero_shot_table.sh"
    find, *runs, table = commands_of(script, (python, record), "--batch_size_val", "8", JOBS="1", **asked)
    assert find[:2] == ["-m", "tools.weights"]
    assert find[-3:] == ["--names", "ViT-B/32", "open_clip:PE-Core-B-16/meta"]
    assert table == ["-m", "tools.table", results, "--backbones"]
    rows = {row["row_name"]: row for row in map(settings_of, runs)}
    assert {name: row["max_words"] for name, row in rows.items()} == {"ViT-B/32": 32, "open_clip:PE-Core-B-16/meta": 30}
    for name, row in rows.items():
        assert (row["do_train"], row["do_eval"], row["method"], row["seed"]) == (False, True, "clip4clip", 0)
        assert row["pretrained_clip_name"] == name
        assert row["features_path"] == "/data/my videos/videos"
        assert row["batch_size_val"] == 8
    assert len({row["output_dir"] for row in rows.values()}) == 2

    record.write_text("")
    _, run, _ = commands_of(script, (python, record), datatype="didemo", only="^ViT-B/32$", **asked)
    assert settings_of(run)["data_path"] == "/data/my videos"


def test_the_zero_shot_table_of_a_machine_without_weights(tmp_path):
    done = subprocess.run(
        ["bash", str(SCRIPTS / "zero_shot_table.sh")], capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHON": sys.executable, "NGPU": "1", "runs": str(tmp_path / "runs"), "HOME": str(tmp_path),
                          "results": str(tmp_path / "table.csv"), "backbones": "ViT-B/32",
                          "pretrained_dir": str(tmp_path / "none")},
    )  # fmt: skip
    assert done.returncode == 2
    assert "left out: ViT-B/32: " in done.stderr
    assert "error: there are no weights of a backbone in " in done.stderr
    assert not (tmp_path / "table.csv").exists()
