"""Runs that keep the weights of each epoch, and `python -m engine.average`, on real small mp4 files."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.average import main as average
from engine.checkpoint import read_checkpoint, read_header, write_checkpoint
from main_task_recognition import main
from main_task_retrieval import main as retrieval
from modules.averaging import average_weights
from modules.clip_weights import load_clip
from tests.training_runs import METHODS, interrupt_after, lines_of
from tests.training_runs import training as training_of_pairs

EPOCHS = range(1, 4)


def training(small_actions, output: Path, *more: str) -> list[str]:
    """Return the flags of a training of CLIP and a head, 3 epochs of 2 steps."""
    few = ["--epochs", "3", "--batch_size", "12", "--method", "clip4clip", "--lr", "1e-3", "--coef_lr", "1"]
    return [
        "--do_train", *small_actions.flags(), *few, "--classifier", "linear", "--save_every_epoch",
        "--output_dir", str(output), *more,
    ]  # fmt: skip


def files_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "epochs").iterdir())}


@pytest.fixture(scope="module")
def trained(small_actions, tmp_path_factory) -> Path:
    """Return the folder of a training; tests write only averages there."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(training(small_actions, run)) == 0
    return run


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """Return a run's folder with the checkpoints of epochs, to change."""
    shutil.copytree(trained / "epochs", tmp_path / "run" / "epochs")
    return tmp_path / "run"


def change(path: Path, tensors=lambda tensors: tensors, **facts) -> None:
    header, content, _ = read_checkpoint(path)
    write_checkpoint(path, tensors(content), replace(header, **facts))


def clip_of(small_actions) -> dict[str, torch.Tensor]:
    return {f"clip.{name}": tensor for name, tensor in load_clip(small_actions.clip).state_dict().items()}


def test_each_epoch_is_kept(trained):
    assert list(files_of(trained)) == [f"epoch_{epoch:04d}.safetensors" for epoch in EPOCHS]
    states = [load_file(trained / "epochs" / name) for name in files_of(trained)]
    last = load_file(trained / "last.safetensors")
    assert all(torch.equal(tensor, states[-1][name]) for name, tensor in last.items())
    assert not torch.equal(states[0]["clip.visual.proj"], states[1]["clip.visual.proj"])
    assert [read_header(trained / "epochs" / name).epoch for name in files_of(trained)] == [*EPOCHS]
    assert len(list((trained / "resume").iterdir())) == 2  # the flag keeps no further resume points


def test_an_average_is_evaluated_and_named(small_actions, trained, tmp_path, capsys):
    assert average([str(trained), "--epochs", "2-3"]) == 0
    path, made_of = trained / "swa_2_3.safetensors", "average (swa) of epochs 2-3"
    assert f"  0.5000  epoch 2\n  0.5000  epoch 3\n{path}: {made_of}\n" in capsys.readouterr().out
    header = read_header(path)
    assert (header.made_of, header.epoch, header.task) == (made_of, 3, "recognition")
    states = [load_file(trained / "epochs" / f"epoch_{epoch:04d}.safetensors") for epoch in (2, 3)]
    result = load_file(path)
    assert result.keys() == states[0].keys()
    for name, tensor in result.items():
        expected = (states[0][name].double() + states[1][name].double()) / 2
        torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=1e-6)
    assert not all(tensor.is_floating_point() for tensor in result.values())  # one is a number that names the classes

    results = tmp_path / "results.csv"
    flags = ["--init_model", str(path), "--output_dir", str(trained), "--results_csv", str(results)]
    assert main(["--do_eval", *flags]) == 0
    (row,) = csv.DictReader(results.open())
    assert (row["selection"], row["epoch"]) == (made_of, "3")
    assert f"weights from {path}, {made_of}" in (trained / "log.txt").read_text()
    # It is a start for training, too, and a training that is resumed keeps the line of its evaluation.
    more = ["--init_model", str(path), "--epochs", "1", "--output_dir", str(tmp_path / "further")]
    assert main(training(small_actions, tmp_path, *more)) == 0
    assert read_header(tmp_path / "further" / "last.safetensors").made_of == ""
    assert main(training(small_actions, trained, "--resume", "auto")) == 0
    assert [line["selection"] for line in lines_of(trained, "test")] == [made_of, "last epoch"]


@pytest.mark.parametrize("how", ["swa", "gwa", "bwa", "ewa"])
def test_clip_takes_part_as_epoch_0(small_actions, trained, tmp_path, capsys, how):
    """Check the tensors that CLIP has, and the head, which it does not have."""
    output = tmp_path / "new" / "average.safetensors"
    assert average([str(trained), "--how", how, "--epochs", "1-3", "--with_clip", "--output", str(output)]) == 0
    assert "without CLIP, which does not have them: loss." in capsys.readouterr().out
    assert read_header(output).made_of == f"average ({how}) of CLIP and epochs 1-3"
    clip = clip_of(small_actions)
    states = [load_file(trained / "epochs" / f"epoch_{epoch:04d}.safetensors") for epoch in EPOCHS]
    result = load_file(output)
    with_clip, without = average_weights(how, [0, *EPOCHS]), average_weights(how, EPOCHS)
    for name, tensor in result.items():
        parts, weights = ([clip[name]], with_clip) if name in clip else ([], without)
        parts = [part.double() for part in (*parts, *(state[name] for state in states))]
        expected = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=1e-6)


def test_patching(small_actions, trained):
    assert average([str(trained), "--epochs", "3", "--patch", "0.25"]) == 0
    path = trained / "swa_3_3_patch0.25.safetensors"
    assert read_header(path).made_of == "average (swa) of epoch 3, patched with 0.25 of CLIP"
    clip, last, result = clip_of(small_actions), load_file(trained / "last.safetensors"), load_file(path)
    for name, tensor in result.items():
        expected = 0.25 * clip[name] + 0.75 * last[name] if name in clip else last[name]
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0-3"], "epochs count from 1, and --with_clip adds CLIP as epoch 0"),
        (["--epochs", "3-2"], "--epochs 3-2: name one epoch"),
        (["--epochs", "1,2"], "--epochs 1,2: name one epoch"),
        (["--epochs", "2-6"], "has no epoch 4, 5, 6, only 1, 2, 3; pass others as --epochs"),
        (["--epochs", "1-3", "--patch", "1.5"], "--patch 1.5: must be the share of CLIP, 0 to 1"),
        (["--epochs", "1-3", "--output", "average.pt"], "give a name that ends in .safetensors"),
        (["--epochs", "1-3", "--with_clip", "--pretrained_clip_name", "none.pt"], "none.pt"),
    ],
)
def test_wrong_flags(trained, capsys, flags, message):
    before = sorted(trained.rglob("*"))
    assert average([str(trained), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(trained.rglob("*")) == before


def test_folders_without_epochs(copied, capsys):
    assert average([str(copied.parent), "--epochs", "1"]) == 2
    assert "has no checkpoints of epochs; train with --save_every_epoch" in capsys.readouterr().err
    (copied / "epochs" / "epoch_0002.safetensors").unlink()
    assert average([str(copied), "--epochs", "1-3"]) == 2
    assert "has no epoch 2, only 1, 3" in capsys.readouterr().err
    assert average([str(copied), "--epochs", "1", "--output", str(copied / "epochs" / "epoch_0001.safetensors")]) == 2
    assert "is among the checkpoints of epochs; name another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"identity": {"seed": 3}}, "belongs to another run than "),
        ({"task": "retrieval"}, "task is 'recognition' there and 'retrieval' here; average one run at a time"),
        ({"identity": {}}, "does not say which run it belongs to"),
        ({"epoch": 7}, "is of epoch 7"),
        ({"tensors": lambda tensors: {**tensors, "more": torch.zeros(1)}}, "has no tensor more, which "),
    ],
)
def test_checkpoints_that_do_not_belong_together(copied, capsys, facts, message):
    change(copied / "epochs" / "epoch_0003.safetensors", **facts)
    for more in ([], ["--with_clip"]):
        assert average([str(copied), "--epochs", "1-3", *more]) == 2
        error = capsys.readouterr().err
        assert "epoch_0003.safetensors" in error
        assert message in error
    assert not list(copied.glob("*.safetensors"))


def test_clip_must_be_the_one_of_the_run_and_trained(copied, capsys):
    for path in (copied / "epochs").iterdir():
        change(path, backbone_sha256="b" * 64)
    assert average([str(copied), "--epochs", "1-3", "--patch", "0.5"]) == 2
    assert "is not the CLIP that the run was trained on (sha256 " in capsys.readouterr().err
    assert average([str(copied), "--epochs", "1-3"]) == 0


def test_retrieval_with_a_frozen_clip(small_data, tmp_path, capsys):
    run = tmp_path / "run"
    assert retrieval(training_of_pairs(small_data, run, *METHODS["stop"], "--save_every_epoch")) == 0
    assert average([str(run), "--epochs", "1-2", "--how", "ewa"]) == 0
    capsys.readouterr()
    assert average([str(run), "--epochs", "1-2", "--with_clip"]) == 2
    assert "has no tensor of CLIP's, because the run did not train CLIP" in capsys.readouterr().err
    flags = ["--do_eval", "--init_model", str(run / "ewa_1_2.safetensors"), "--output_dir", str(tmp_path / "again")]
    assert retrieval(flags) == 0
    (line,) = lines_of(tmp_path / "again", "test")
    assert line["selection"] == "average (ewa) of epochs 1-2"


def test_a_damaged_member_is_refused(copied, capsys):
    path = copied / "epochs" / "epoch_0002.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    assert average([str(copied), "--epochs", "1-3"]) == 2
    assert f"{path}: " in capsys.readouterr().err


def test_resuming_continues_the_files_and_a_new_run_sets_them_aside(small_actions, trained, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        assert main(training(small_actions, run)) == 75
    assert list(files_of(run)) == ["epoch_0001.safetensors"]
    assert main(training(small_actions, run, "--resume", "auto")) == 0
    whole = files_of(run)
    for name in files_of(trained):
        first, second = load_file(trained / "epochs" / name), load_file(run / "epochs" / name)
        assert all(torch.equal(tensor, second[key]) for key, tensor in first.items()), name

    # From an earlier point on: what comes after it will be written again, and is not mixed with the old files.
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        assert main(training(small_actions, run, "--resume", str(run / "resume" / "step_00000004.pt"))) == 75
    assert list(files_of(run)) == list(whole)[:2]
    assert files_of(run)["epoch_0001.safetensors"] == whole["epoch_0001.safetensors"]

    assert main(training(small_actions, run, "--epochs", "1")) == 0
    assert list(files_of(run)) == ["epoch_0001.safetensors"]
    assert len(list((run / "epochs_before_1").iterdir())) == 2


def test_a_run_that_diverged_is_refused(copied, capsys):
    damaged = copied / "epochs" / "epoch_0003.safetensors"
    change(damaged, lambda tensors: tensors | {"clip.visual.proj": tensors["clip.visual.proj"] * float("nan")})
    assert average([str(copied), "--epochs", "2-3"]) == 2
    assert f"{damaged}: clip.visual.proj is not finite" in capsys.readouterr().err
    assert [path.name for path in copied.iterdir()] == ["epochs"]


def test_a_copy_beside_an_epoch_is_not_taken_for_it(copied):
    (copied / "epochs" / "epoch_3.safetensors").write_bytes(b"a copy of something")
    assert average([str(copied), "--epochs", "2-3"]) == 0


def test_only_an_average_is_replaced(copied, capsys):
    output = copied / "last.safetensors"
    for content in ((copied / "epochs" / "epoch_0003.safetensors").read_bytes(), b"another kind of file"):
        output.write_bytes(content)
        assert average([str(copied), "--epochs", "1-3", "--output", str(output)]) == 2
        assert f"--output {output}: is there and is no average" in capsys.readouterr().err
        assert output.read_bytes() == content
    for _ in range(2):
        assert average([str(copied), "--epochs", "1-3", "--output", str(copied / "swa.safetensors")]) == 0
