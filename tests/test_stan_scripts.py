"""The scripts of STAN and Mug-STAN: the presets of the release, and those with a clean schedule."""

import json
from pathlib import Path

import pytest

from main_task_retrieval import main
from tests.launch_scripts import commands_of, settings_of, write_recorder

SCRIPTS = Path(__file__).parent.parent / "scripts"

# What all configurations of the release have in common, but for WebVid and DiDeMo.
RELEASED = {
    "do_train": True, "datatype": "msrvtt", "expand_msrvtt_sentences": True, "coef_lr": 0.1, "batch_size": 128,
    "decay_groups": "released", "adam_beta2": 0.98, "adam_eps": 1e-8, "schedule": "periodic_cosine",
    "cosine_epochs": 4.5, "loss": "summed_info_nce", "gather_gradient": "own", "max_grad_norm": 5,
    "precision": "fp16", "precision_val": "fp32", "max_words": 32, "max_frames": 12, "frame_sampling": "stan",
    "feature_framerate": 0, "frame_transform": "bilinear", "train_short_side": 256, "test_short_side": 0,
    "crop_scale": 0.08, "short_side_max": 0, "same_video": "negatives", "select_on": "test", "seed": 42,
    "stan_layers": 0, "time_frames": 0, "drop_path": 0.1, "temporal_module": "self", "stan_embeddings": "released",
}  # fmt: skip


@pytest.fixture
def recorder(tmp_path) -> tuple[Path, Path]:
    return write_recorder(tmp_path)


@pytest.mark.parametrize(
    ("script", "clip", "expected"),
    [  # tau, learning rate of what is new, weight decay, epochs, epochs of warm-up
        ("stan_msrvtt_released", "ViT-B/32", (0.01, 2e-5, 0.05, 10, 10)),
        ("stan_msrvtt_released", "ViT-B/16", (0.02, 2e-5, 0.05, 10, 10)),
        ("stan_msrvtt_released", "ViT-L/14", (0.01, 2e-5, 0.05, 10, 10)),
        ("mug_stan_msrvtt_released", "ViT-B/32", (0.01, 2e-5, 0.02, 100, 10)),
        ("mug_stan_msrvtt_released", "ViT-B/16", (0.02, 1e-5, 0.2, 100, 10)),
    ],
)
def test_the_presets_are_the_configurations_of_the_release(recorder, script, clip, expected):
    (command,) = commands_of(SCRIPTS / f"{script}.sh", recorder, pretrained_clip_name=clip)
    settings = settings_of(command)
    assert {name: settings[name] for name in RELEASED} == RELEASED
    assert settings["method"] == script.removesuffix("_msrvtt_released")
    assert settings["pretrained_clip_name"] == clip
    tau, lr, weight_decay, epochs, warm = expected
    assert tuple(settings[name] for name in ("tau", "lr", "weight_decay", "epochs")) == (tau, lr, weight_decay, epochs)
    assert settings["warmup_proportion"] * epochs == pytest.approx(warm)


def test_mug_stan_is_evaluated_on_more_frames(recorder):
    (command,) = commands_of(SCRIPTS / "mug_stan_msrvtt_released.sh", recorder, mode="eval")
    settings = settings_of(command)
    assert (settings["do_train"], settings["do_eval"], settings["max_frames"]) == (False, True, 32)
    assert command[command.index("--init_model") + 1] == "runs/msrvtt_released_mug_stan/best.safetensors"
    assert settings["output_dir"] == "runs/msrvtt_released_mug_stan_32_frames"
    command = commands_of(SCRIPTS / "mug_stan_msrvtt_released.sh", recorder, mode="eval", max_frames="12")[-1]
    assert settings_of(command)["max_frames"] == 12


@pytest.mark.parametrize(
    ("script", "expected"),
    [  # data set, tau, CLIP's learning rate, weight decay, words, frames, short side in evaluation, recomputation
        ("stan_msrvtt", ("msrvtt", 0.01, 2e-6, 0.02, 32, 12, 0, False)),
        ("mug_stan_msrvtt", ("msrvtt", 0.01, 2e-6, 0.02, 32, 12, 0, False)),
        ("mug_stan_didemo", ("didemo", 0.05, 2e-6, 0.01, 77, 64, 256, True)),
        ("stan_lsmdc", ("lsmdc", 0.01, 1e-6, 0.2, 32, 12, 0, False)),
        ("stan_activitynet", ("activitynet", 0.05, 2e-6, 0.01, 77, 64, 0, True)),
    ],
)
def test_the_scripts_with_a_clean_schedule(recorder, tmp_path, script, expected):
    (tmp_path / "start.bin").touch()
    (command,) = commands_of(SCRIPTS / f"{script}.sh", recorder, DATA_PATH="/d", init_model=str(tmp_path / "start.bin"))
    settings = settings_of(command)
    common = {
        "do_train": True, "method": script.rpartition("_")[0], "epochs": 20, "batch_size": 128,
        "schedule": "warmup_cosine", "warmup_proportion": 0.1, "loss": "symmetric_info_nce", "gather_gradient": "sum",
        "max_grad_norm": 5, "frame_sampling": "segment", "frame_transform": "resize", "crop_scale": 0.08,
        "decay_groups": "matrices", "precision": "auto", "select_on": "last", "features_path": "/d/videos",
        "init_model": str(tmp_path / "start.bin"), "output_dir": f"runs/{expected[0]}_{script.rpartition('_')[0]}",
    }  # fmt: skip
    assert {name: settings[name] for name in common} == common
    assert settings["lr"] * settings["coef_lr"] == pytest.approx(expected[2])
    names = (
        "datatype",
        "tau",
        "weight_decay",
        "max_words",
        "max_frames",
        "test_short_side",
        "activation_checkpointing",
    )
    assert tuple(settings[name] for name in names) == (*expected[:2], *expected[3:])
    (plain, *_) = commands_of(SCRIPTS / f"{script}.sh", recorder)[1:]
    assert "--init_model" not in plain


def test_lsmdc_has_other_values_for_mug_stan(recorder):
    settings = settings_of(commands_of(SCRIPTS / "stan_lsmdc.sh", recorder, method="mug_stan")[-1])
    assert (settings["tau"], settings["coef_lr"], settings["weight_decay"]) == (0.03, 0.2, 0.1)
    assert settings["lr"] * settings["coef_lr"] == pytest.approx(2e-6)


@pytest.mark.parametrize("method", ["stan", "mug_stan"])
def test_a_preset_trains(recorder, small_data, tmp_path, method):
    small = {"batch_size": "4", "max_words": "12", "max_frames": "3", "num_thread_reader": "0", "epochs": "1"}
    small |= {"precision": "fp32", "train_short_side": "40"}  # fp16 convolutions are very slow on a CPU
    places = {"DATA_PATH": small_data.folder, "features_path": small_data.videos, "output_dir": tmp_path / "run"}
    small |= {name: str(place) for name, place in places.items()} | {"pretrained_clip_name": str(small_data.clip)}
    command = commands_of(SCRIPTS / f"{method}_msrvtt_released.sh", recorder, "--n_display", "1", **small)[-1]
    assert main(command[1:]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["train"] * 5 + ["test", "test"]
    assert lines[-1]["selection"] == "best epoch ON THE TEST SPLIT"
    assert [line["logit_scale"] for line in lines[:5]] == pytest.approx([100] * 5)


def test_the_rows_of_the_made_world(recorder, tmp_path):
    """Check that a row after post-pretraining differs from its sibling in its start, and is left out without one."""
    start = tmp_path / "start.safetensors"
    start.touch()
    ran = commands_of(
        SCRIPTS / "ablation_moving_shapes.sh", recorder, only="STAN", seeds="3", results=str(tmp_path / "r.csv"),
        mug_stan_start=str(start),
    )  # fmt: skip
    commands = {command[command.index("--row_name") + 1]: command for command in ran if "main_task" in command[0]}
    rows = {name: settings_of(command) for name, command in commands.items()}
    assert {name: (row["method"], row["init_model"]) for name, row in rows.items()} == {
        "STAN": ("stan", ""),
        "Mug-STAN": ("mug_stan", ""),
        "Mug-STAN, post-pretrained": ("mug_stan", str(start)),
    }
    own = {"row_name", "output_dir", "init_model"}
    plain, after = rows["Mug-STAN"], rows["Mug-STAN, post-pretrained"]
    assert {name for name in plain if plain[name] != after[name]} == own
    assert {(row["tau"], row["lr"], row["seed"], row["max_frames"]) for row in rows.values()} == {(0.03, 3e-3, 3, 8)}
