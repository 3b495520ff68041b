"""What the scripts cannot use is refused in one sentence, before anything is written or trained."""

from pathlib import Path
from typing import get_args

import pytest

from engine.flags import PICTURES
from modules.averaging import Average
from tests.launch_scripts import commands_of, refused_by, settings_of, write_recorder

SCRIPTS = Path(__file__).parent.parent / "scripts"
STEERED_BY_VARIABLES = [
    "ablation_moving_shapes", "backbones_moving_shapes", "quickstart", "recognition_moving_actions",
    "stdd_moving_actions", "table_moving_actions", "table_moving_shapes", "table_msrvtt",
]  # fmt: skip
TABLES = {  # scripts with rows, and a row of each
    "ablation_moving_shapes": "STOP, uniform N_t",
    "backbones_moving_shapes": "STOP, SigLIP, its own loss",
    "recognition_moving_actions": "zero-shot, base to novel",
    "stdd_moving_actions": "STDD, plain names, averaged",
    "stdd_zero_shot": "Kinetics-400, validation",  # without its data set too
    "table_moving_actions": "TC-CLIP",
    "table_moving_shapes": "zero-shot",
    "table_msrvtt": "STOP, LoRA",
    "zero_shot_table": "ViT-B/32",
}


@pytest.fixture
def refused(tmp_path):
    """Return a function that runs a script with arguments and variables, and returns its sentence."""
    recorder = write_recorder(tmp_path)
    python = recorder[0]
    python.write_text(python.read_text() + 'case "$*" in *"tools.weights"*) echo "ViT-B/32|32" ;; esac\n')
    (tmp_path / "model.bin").touch()

    def run(name: str, *arguments: str, **variables: str) -> str:
        if name == "stdd_zero_shot" and "checkpoint" not in variables:
            variables["checkpoint"] = str(tmp_path / "model.bin")
        return refused_by(SCRIPTS / f"{name}.sh", recorder, *arguments, **variables)

    return run


@pytest.mark.parametrize("name", STEERED_BY_VARIABLES)
def test_arguments_of_a_script_that_variables_steer(refused, name):
    told = refused(name, "--epochs", "8")
    assert told == (
        "--epochs: this script takes no arguments; set variables in front of it, as in "
        f"'epochs=8 bash {SCRIPTS / name}.sh'"
    )


def test_every_script_passes_arguments_on_or_refuses_them():
    for script in SCRIPTS.glob("[a-z]*.sh"):
        text = script.read_text()
        assert '"$@"' in text, f"{script.name} drops its arguments"
        assert ('no_arguments "$@"' in text) == (script.stem in STEERED_BY_VARIABLES)


@pytest.mark.parametrize("name", TABLES)
def test_a_row_that_is_not_there(refused, name):
    told = refused(name, only="NOPE")
    assert told.startswith("only=NOPE: matches the name of none of the rows, which are: ")
    assert TABLES[name] in told.partition("are: ")[2].split("; ")


@pytest.mark.parametrize("only", ["(", "*", "[a"])
@pytest.mark.parametrize("name", TABLES)
def test_no_regular_expression(refused, name, only):
    told = refused(name, only=only)
    assert told == f"only={only}: is no regular expression; put a backslash before a sign that stands for itself"


@pytest.mark.parametrize("jobs", ["two", "0", "-1", "1.5", "08"])
def test_jobs(refused, jobs):
    assert refused("ablation_moving_shapes", JOBS=jobs) == f"JOBS={jobs}: must be a whole number, at least 1"


@pytest.mark.parametrize("name", TABLES)
def test_jobs_of_every_table(refused, name):
    assert refused(name, JOBS="two") == "JOBS=two: must be a whole number, at least 1"


@pytest.mark.parametrize(
    ("seeds", "fault"),
    [
        ("0,1", "0,1 is no whole number"), ("two", "two is no whole number"), ("-1", "-1 is no whole number"),
        ("0 *", "* is no whole number"), ("", "has no number"), ("  ", "has no number"), ("0 1 0", "has 0 twice"),
    ],
)  # fmt: skip
def test_seeds(refused, seeds, fault):
    told = refused("ablation_moving_shapes", seeds=seeds)
    assert told == f"seeds={seeds}: {fault}; name different whole numbers with spaces between them, as in " + (
        'seeds="0 1 2"'
    )


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("stdd_zero_shot", "zero_shot_table")])
def test_seeds_of_every_table(refused, name):
    assert refused(name, seeds="0,1").startswith("seeds=0,1: 0,1 is no whole number; ")


def test_spaces_around_seeds(tmp_path):
    """Check that zero-shot, which has the first seed alone, is not lost."""
    variables = {"seeds": " 3\n4 ", "only": "^zero-shot$", "results": str(tmp_path / "rows.csv")}
    ran = commands_of(SCRIPTS / "ablation_moving_shapes.sh", write_recorder(tmp_path), **variables)
    assert [settings_of(command)["seed"] for command in ran if "main_task" in command[0]] == [3]


def test_draws_and_seeds_of_evaluations(refused):
    assert refused("stdd_zero_shot", draws="0-9").startswith("draws=0-9: 0-9 is no whole number; ")
    assert refused("stdd_zero_shot", draws="").startswith("draws=: has no number; ")
    assert refused("stdd_zero_shot", seeds="1").startswith("seeds=1: a checkpoint is evaluated")
    assert refused("zero_shot_table", seeds="1") == "seeds=1: nothing is trained, so a row has no seed; leave it out"


@pytest.mark.parametrize("name", ["msrvtt", "msvd", "ucf101", "table_msrvtt", "quickstart", "benchmark"])
@pytest.mark.parametrize("gpus", ["two", "0"])
def test_the_number_of_gpus(refused, name, gpus):
    assert refused(name, NGPU=gpus) == f"NGPU={gpus}: must be a whole number, at least 1"


@pytest.mark.parametrize("name", ["recognition_moving_actions", "stdd_moving_actions"])
def test_epochs_that_a_script_counts_with(refused, name):
    assert refused(name, epochs="few") == "epochs=few: must be a whole number, at least 1"


def test_protocols(refused):
    assert refused("table_msrvtt", protocol="ownn") == "protocol=ownn: it is common or own"


@pytest.mark.parametrize("protocol", ["common", "own"])
def test_charts(refused, protocol, tmp_path):
    (tmp_path / "folder.png").mkdir()
    for chart in ("x.txt", "png", str(tmp_path / "folder.png")):
        told = refused("table_msrvtt", protocol=protocol, chart=chart)
        assert told == f"chart={chart}: must be a file whose name ends in " + " or ".join(
            [", ".join(PICTURES[:-1]), PICTURES[-1]]
        )


@pytest.mark.parametrize("name", ["batch_size", "max_words", "holdout_videos", "search_epochs"])
def test_what_papers_fix_of_own_protocols(refused, name):
    told = refused("table_msrvtt", protocol="own", **{name: "40"})
    fault = "search of learning rates" if name in ("holdout_videos", "search_epochs") else "would reach some rows alone"
    assert told.startswith(f"{name}=40: ")
    assert fault in told


@pytest.mark.parametrize("only", ["^STAN$", "^VPT, images", "^STOP, LoRA$"])
def test_rows_without_an_own_protocol(refused, only):
    told = refused("table_msrvtt", protocol="own", only=only)
    assert told.startswith(f"only={only}: matches the name of none of the rows, which are: zero-shot; CLIP4Clip; ")


@pytest.mark.parametrize(
    ("name", "variables", "useless"),
    [
        ("post_pretrain", {"method": "clip4clip"}, {"tau": "0.05"}),
        ("stdd_k400", {"method": "stop"}, {"distill": "intended"}),
        ("stdd_k400", {"method": "stop"}, {"distill_ratio": "1"}),
        ("msrvtt_released", {"method": "clip4clip"}, {"shared_latent_space": "linear"}),
        ("msrvtt_released", {"method_flags": "--alpha 1"}, {"shared_latent_space": "linear"}),
        ("stdd_zero_shot", {}, {"text_features": "texts/{}.safetensors"}),
        ("stdd_zero_shot", {"classifier": "linear"}, {"text_features": "texts/{}.safetensors"}),
        ("zero_shot_table", {"datatype": "didemo"}, {"val_csv": "test.csv"}),
    ],
)
def test_variables_that_a_method_does_not_read(refused, name, variables, useless):
    ((variable, value),) = useless.items()
    told = refused(name, **variables, **useless)
    assert told.startswith(f"{variable}={value}: ")
    assert told.endswith("; leave it out")


def test_variables_that_a_method_reads(tmp_path):
    """Check the same variables where they count; a crop is for every method, and only the default is STAN's."""
    recorder = write_recorder(tmp_path)

    def settings(script: str, **variables: str) -> dict:
        return settings_of(commands_of(SCRIPTS / f"{script}.sh", recorder, **variables)[-1])

    crops = [
        settings("post_pretrain", method=method, **crop)["crop_scale"]
        for method in ("stan", "clip4clip")
        for crop in ({}, {"crop_scale": "0.5"})
    ]
    assert crops == [0.08, 0.5, 1.0, 0.5]
    assert settings("post_pretrain", tau="0.05")["tau"] == 0.05
    assert settings("stdd_k400", distill="intended", distill_ratio="1")["distill_ratio"] == 1
    assert settings("msrvtt_released", method_flags="--alpha 1", method="stop")["alpha"] == 1
    answer = 'case "$*" in *"tools.weights"*) echo "ViT-B/32|32" ;; esac\n'
    recorder[0].write_text(recorder[0].read_text() + answer)
    results = str(tmp_path / "rows.csv")
    *_, row, _ = commands_of(SCRIPTS / "zero_shot_table.sh", recorder, val_csv="test.csv", results=results)
    assert settings_of(row)["val_csv"] == "test.csv"


def test_a_bag_without_its_texts(refused):
    told = refused("stdd_zero_shot", classifier="bag")
    assert told == "classifier=bag: needs text_features, the files that preprocess/text_features.py writes"


@pytest.mark.parametrize("average", ["9-12", "3-9", "0-3", "5-3", "3,4", "3-", "-3", "all", "9"])
def test_averages(refused, average):
    told = refused("stdd_moving_actions", average=average)
    assert told == f"average={average}: must be one of the 8 epochs that are trained, or a range such as 1-8"
    assert refused("stdd_moving_actions", epochs="2").startswith("average=3-8: must be one of the 2 epochs ")


def test_kinds_of_averages(refused):
    assert refused("stdd_moving_actions", how="avg") == "how=avg: it is swa, gwa, bwa or ewa"
    for how in get_args(Average):  # all are known: the next thing is refused
        assert refused("stdd_moving_actions", how=how, average="9").startswith("average=9: ")


def test_few_epochs_without_averages(tmp_path):
    results = str(tmp_path / "rows.csv")
    variables = {"epochs": "2", "only": "^STDD, plain names$", "seeds": "0", "results": results}
    ran = commands_of(SCRIPTS / "stdd_moving_actions.sh", write_recorder(tmp_path), **variables)
    assert [settings_of(command)["epochs"] for command in ran if "main_task" in command[0]] == [2]


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("search_moments", "checkpoint"),
        ("ablation_moving_shapes", "stan_start"),
        ("ablation_moving_shapes", "mug_stan_start"),
    ],
)
def test_a_checkpoint_that_is_not_there(refused, name, variable):
    told = refused(name, **{variable: "runs/mine/first.safetensors"})
    assert told == f"{variable}=runs/mine/first.safetensors: there is no such file; correct it, or leave it out"


@pytest.mark.parametrize("variable", ["epochs", "batch_size"])
def test_values_of_a_training_beside_a_checkpoint(refused, tmp_path, variable):
    checkpoint = str(tmp_path / "model.bin")
    told = refused("search_moments", checkpoint=checkpoint, **{variable: "4"})
    expected = f"is for training, and {checkpoint} is there already (runs=FOLDER trains another one); leave it out"
    assert told == f"{variable}=4: {expected}"


@pytest.mark.parametrize(
    "name", ["msrvtt", "msvd", "msrvtt_released", "post_pretrain", "stan_msrvtt_released", *STEERED_BY_VARIABLES]
)
def test_a_mode_of_a_script_that_always_trains(refused, name):
    told = refused(name, mode="eval")
    assert told.startswith("mode=eval: this script always trains; leave it out, ")


def test_the_mode_that_every_script_has(tmp_path):
    (command,) = commands_of(SCRIPTS / "msrvtt.sh", write_recorder(tmp_path), mode="train")
    assert settings_of(command)["do_train"]
