"""The picture of a trained STOP has a row per map and shows the counts; mistakes are one sentence."""

import json

import cv2
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from main_task_recognition import main as recognise
from main_task_retrieval import main as train
from modules.seal import DIGEST, seal
from tools.pictures import GAP, LABEL, SIDE
from tools.visualize import main


@pytest.fixture(scope="module")
def checkpoints(small_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for method in ("stop", "clip4clip"):
        flags = ["--method", method, "--epochs", "1", "--batch_size", "10", "--output_dir", str(folder / method)]
        assert train(["--do_train", *small_data.flags(), *flags]) == 0
    return folder


def test_maps_are_drawn(checkpoints, tmp_path):
    path = tmp_path / "pictures" / "maps.png"
    arguments = [
        "maps",
        str(checkpoints / "stop/last.safetensors"),
        "--output",
        str(path),
        "--videos",
        "video11",
        "video12",
    ]
    assert main(arguments) == 0
    picture = cv2.imread(str(path))
    assert picture.shape == (2 * (30 + 4 * (SIDE + 6) + 10), LABEL + 3 * (SIDE + GAP), 3)
    between = picture[30 : 30 + SIDE, LABEL + SIDE : LABEL + SIDE + GAP]
    assert (between < 200).any(), "no count between the first two frames"


@pytest.mark.parametrize("method", ["stop", "clip4clip"])
def test_retrieval(checkpoints, tmp_path, method):
    path = tmp_path / "retrieval.png"
    arguments = ["retrieval", str(checkpoints / method / "last.safetensors"), "--output", str(path)]
    assert main([*arguments, "--videos", "video10"]) == 0
    picture = cv2.imread(str(path))[..., ::-1]
    assert picture.shape == (30 + 3 * (SIDE + 8) + 10, max(640, LABEL + 3 * (SIDE + 4)), 3)
    assert (picture[30 : 30 + SIDE, LABEL : LABEL + SIDE] != 255).any()


@pytest.mark.parametrize(
    ("run", "flags", "message"),
    [
        ("clip4clip", [], "has no maps to draw"),
        ("stop", ["--videos", "video99"], "video99 is not in the test split"),
        ("stop", ["--layer", "7"], "has prompts in 2 layers"),
        ("stop", ["--output", "maps.txt"], "a name that ends in .png"),
    ],
)
def test_mistakes(checkpoints, tmp_path, run, flags, message, capsys):
    arguments = ["maps", str(checkpoints / run / "last.safetensors"), "--output", str(tmp_path / "x.png"), *flags]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_picture_of_retrieval_has_no_layer(checkpoints, tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "x.png"), "--layer", "0"]
    assert main(["retrieval", str(checkpoints / "stop/last.safetensors"), *arguments]) == 2
    assert "--layer 0 has no effect with retrieval" in capsys.readouterr().err


def test_missing_checkpoint(tmp_path, capsys):
    assert main(["maps", str(tmp_path / "none.safetensors")]) == 2
    assert "no such checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [({"task": "juggling"}, "was trained for the task 'juggling'"), ({"method": ["stop"]}, "its setting method is")],
)
def test_a_header_of_another_program(checkpoints, tmp_path, change, message, capsys):
    path = tmp_path / "other.safetensors"
    trained = checkpoints / "clip4clip/last.safetensors"
    with safe_open(trained, framework="pt") as file:
        metadata = dict(file.metadata())
    settings = json.loads(metadata["settings"])
    settings |= {name: value for name, value in change.items() if name in settings}
    metadata |= {"settings": json.dumps(settings), "task": change.get("task", metadata["task"])}
    metadata.pop(DIGEST)
    tensors = load_file(trained)
    save_file(tensors, path, seal(tensors, metadata))
    assert main(["retrieval", str(path), "--output", str(tmp_path / "x.png")]) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_recognition(small_actions, tmp_path, capsys):
    """Check that maps are drawn, also after training with a linear head, and that there is nothing to retrieve."""
    flags = ["--method", "stop", "--n_regions", "2", "--epochs", "1", "--batch_size", "16", "--classifier", "linear"]
    assert recognise(["--do_train", *small_actions.flags(), *flags, "--output_dir", str(tmp_path)]) == 0
    checkpoint, path = str(tmp_path / "last.safetensors"), tmp_path / "maps.png"
    assert main(["maps", checkpoint, "--output", str(path), "--videos", "v_MoveLeft_g01_c01"]) == 0
    assert path.is_file()
    assert main(["retrieval", checkpoint, "--output", str(path)]) == 2
    assert "have classes and no captions; draw maps instead" in capsys.readouterr().err
