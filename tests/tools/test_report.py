"""Tables of result rows, and curves of the metrics that runs write during training."""

import json
import math
import sys
from typing import get_args, get_type_hints

import cv2
import pandas as pd
import pytest

from engine.config import RunConfig
from tools.report import main, read_metrics, read_runs, table_of_means, table_of_runs

ROWS = pd.DataFrame(
    {
        "name": ["zero-shot", "STOP", "STOP"],
        "method": ["clip4clip", "stop", "stop"],
        "selection": ["zero-shot", "last epoch", "last epoch"],
        "trainable_parameters": [10, 7_475_712, 7_475_712],
        "seed": [0, 0, 1],
        "t2v R@1": [10.0, 40.0, 44.0],
        "v2t MnR": [20.0, 3.0, 5.0],
    }
)


def test_one_row_per_run():
    header, _, *lines = table_of_runs(ROWS).splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["", "weights", "trained", "T2V R@1", "MnR", "seed"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["zero-shot", "zero-shot", "0", "10.0", "20.0", "0"]
    assert cells[2] == ["STOP", "last epoch", "7.48 M", "44.0", "5.0", "1"]


def test_mean_and_deviation_over_seeds():
    lines = table_of_means(ROWS).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["zero-shot", "0", "10.0", "20.0", "1"]  # one seed has no deviation
    assert cells[1] == ["STOP", "7.48 M", "42.0 ± 2.8", "4.0 ± 1.4", "2"]


def test_untrained_is_not_averaged_with_trained():
    rows = ROWS.assign(selection=["zero-shot", "untrained", "last epoch"])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table_of_means(rows).splitlines()[3:]]
    assert cells == [["STOP, untrained", "0", "40.0", "3.0", "1"], ["STOP, last epoch", "7.48 M", "44.0", "5.0", "1"]]


def test_only_runs_that_measure_the_same_are_averaged():
    facts = {"split": ["1", "2", "2"], "list": "", "shots": ["4", "4", "16"], "views": "1x1"}
    rows = ROWS.assign(name="STOP", selection="last epoch", **facts)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table_of_means(rows).splitlines()[2:]]
    assert cells == [
        ["STOP, shots 4", "0.00 M", "25.0 ± 21.2", "11.5 ± 12.0", "2; splits 1, 2"],
        ["STOP, shots 16", "7.48 M", "44.0", "5.0", "1"],
    ]


def test_draws_of_half_of_the_classes_are_averaged():
    rows = ROWS.assign(name="UCF101", selection="last epoch", split="1", classes=["half:0", "all", "half:9"])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table_of_means(rows).splitlines()[2:]]
    assert [(name, top1, told) for name, _, top1, _, told in cells] == [
        ("UCF101, classes half", "27.0 ± 24.0", "2; draws 0, 9"),
        ("UCF101, classes all", "40.0", "1"),
    ]


@pytest.mark.parametrize(
    ("lists", "texts", "rows"),
    [
        (["1.txt", "2.txt", "3.txt"], ["bag 1", "bag 2", "bag 3"], 1),  # other classes need other prompts
        (["1.txt", "2.txt", "3.txt"], ["a {}"] * 3, 1),
        (["1.txt", "1.txt", "2.txt"], ["bag 1", "bag 2", "bag 3"], 3),  # two kinds of prompts for one list
        (["1.txt", "2.txt", "3.txt"], ["bag 1", "bag 1", "bag 3"], 2),
    ],
)
def test_lists_with_prompts_of_their_own_are_averaged(lists, texts, rows):
    table = ROWS.assign(name="K600", selection="last epoch", split="1", list=lists, class_texts=texts)
    lines = table_of_means(table).splitlines()[2:]
    assert len(lines) == rows
    if rows == 1:
        assert lines[0].split("|")[-2].strip() == "3; lists 1.txt, 2.txt, 3.txt"


def test_names_tell_how_many_videos_were_left_out():
    rows = ROWS.assign(videos=["1000", "1000", "983 of 1000"])
    names = [line.split("|")[1].strip() for line in table_of_runs(rows).splitlines()[2:]]
    assert names == ["zero-shot", "STOP", "STOP (983 of 1000 videos)"]
    few = rows[2:].assign(videos="983 of 1000")
    assert table_of_means(few).splitlines()[2].startswith("| STOP (983 of 1000 videos) ")


def test_post_processed_columns_follow_the_plain_ones():
    rows = ROWS.assign(**{"t2v R@1 (DSL)": [11.0, 41.0, 45.0], "t2v R@1 (QB-Norm)": [12.0, 42.0, 46.0]})
    header, _, line, *_ = table_of_runs(rows).splitlines()
    names = [cell.strip() for cell in header.split("|")[1:-1]]
    assert names[3:] == ["T2V R@1", "MnR", "T2V R@1 (DSL)", "T2V R@1 (QB-Norm)", "seed"]
    assert [cell.strip() for cell in line.split("|")[1:-1]][3:] == ["10.0", "20.0", "11.0", "12.0", "0"]


def test_a_table_of_recognition(tmp_path, capsys):
    path = tmp_path / "results.csv"
    metrics = {"top1": [50.0, 60.0], "top5": [90.0, 90.0], "mean_class": [50.0, 60.0], "direction": [50.0, 75.0]}
    ROWS[1:].drop(columns=["t2v R@1", "v2t MnR"]).assign(**metrics).to_csv(path, index=False)
    assert main([str(path), "--mean"]) == 0
    header, _, line = capsys.readouterr().out.splitlines()
    names = [cell.strip() for cell in header.split("|")[1:-1]]
    assert names == ["", "trained", "top-1", "top-5", "mean class", "direction", "seeds"]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[2:] == ["55.0 ± 7.1", "90.0 ± 0.0", "55.0 ± 7.1", "62.5 ± 17.7", "2"]


def test_base_to_novel_has_the_harmonic_mean_of_the_means():
    metrics = {
        "top1": [80.0, 40.0],
        "novel top1": [20.0, 40.0],
        "novel direction": [50.0, math.nan],
        "HM": [32.0, 40.0],
    }
    rows = ROWS[1:].drop(columns=["t2v R@1", "v2t MnR"]).assign(**metrics)
    header, _, line = table_of_means(rows).splitlines()
    names, cells = ([cell.strip() for cell in text.split("|")[3:-2]] for text in (header, line))
    assert names == ["top-1", "novel top-1", "novel direction", "HM"]
    assert cells == ["60.0 ± 28.3", "30.0 ± 14.1", "50.0", "40.0"]  # the mean of the harmonic means is 36
    assert table_of_runs(rows).splitlines()[3].split("|")[6:8] == [" -               ", " 40.0 "]


@pytest.mark.parametrize(("name", "seed", "status"), [("STOP", "1", 0), ("STOP", "2", 1), ("ST", "1", 1)])
def test_has_finds_a_run_in_the_file(tmp_path, name, seed, status):
    path = tmp_path / "results.csv"
    ROWS.to_csv(path, index=False)
    assert main([str(path), "--has", name, seed]) == status


def test_missing_file(tmp_path, capsys):
    assert main([str(tmp_path / "none.csv")]) == 2
    assert "none.csv: no such file" in capsys.readouterr().err


ROW = "name,selection,trainable_parameters,seed,t2v R@1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; --results_csv of a run writes it"),
        (ROW.encode(), "has no row yet"),
        (
            b"path,status,frames\na.mp4,ok,3\n",
            "is not a results csv, it lacks the columns name, selection, train",
        ),
        (b"name,selection,trainable_parameters,seed\na,b,1,2\n", "is not a results csv, it lacks the columns t2v R@1"),
        (b"\n\n", "is empty; --results_csv of a run writes it"),
        (b"# A title\n\nsome words, and more\n", "is not a results csv, it lacks the columns name, selection"),
        ((ROW + "a,b,1,2\n").encode(), "row 1 has 4 cells, the header has 5"),
        ((ROW + "a,b,1,2,3,4\n").encode(), "row 1 has 6 cells, the header has 5"),
        ((ROW.strip() + ",seed\na,b,1,2,3,4\n").encode(), "is not a results csv, it has two columns of one name"),
        (b'"a\n', "is not a results csv ("),
        (b"\x89PNG\xff\n", "is not a results csv ("),
        (
            (ROW + "a,b,1,2,9.5\na,b,1,2,high\n").encode(),
            "row 2 has 'high' in the column t2v R@1, which",
        ),
        ((ROW + "a,b,many,2,9.5\n").encode(), "row 1 has 'many' in the column trainable_parameters"),
        ((ROW + "a,b,1,2,\n").encode(), "row 1 has '' in the column t2v R@1"),
        ((ROW + "a,b,1,2,nan\n").encode(), "row 1 has 'nan' in the column t2v R@1"),
    ],
)
@pytest.mark.parametrize("table", [[], ["--mean"]])
def test_files_that_are_not_results(tmp_path, capsys, content, message, table):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    assert main([str(path), *table]) == 2
    error = capsys.readouterr().err
    assert f"error: {path}: {message}" in error
    assert error.count("\n") == 1


def test_names_are_read_unchanged(tmp_path, capsys):
    """Check names that look like numbers or missing values, and a file with a byte order mark."""
    path = tmp_path / "results.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (ROW + "12,last epoch,2000000,07,50\nNA,untrained,2000000,1,1\n").encode())
    assert main([str(path), "--has", "12", "07"]) == 0
    assert main([str(path), "--has", "12", "7"]) == 1
    assert main([str(path)]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert lines == [["12", "last epoch", "2.00 M", "50.0", "07"], ["NA", "untrained", "0", "1.0", "1"]]


def test_a_table_takes_one_file(capsys):
    assert main(["a/metrics.jsonl", "b/metrics.jsonl"]) == 2
    assert "b/metrics.jsonl: a table takes one results csv" in capsys.readouterr().err


def training(epoch, loss):
    return {"time": 0.0, "step": round(100 * epoch), "kind": "train", "epoch": epoch, "loss": loss, "lr": 0.1}


def evaluation(epoch, recall, kind="test"):
    return {"time": 0.0, "step": epoch, "kind": kind, "t2v R@1": recall, "t2v R@5": 90.0}


def written(folder, *lines):
    """Write a `metrics.jsonl` with these lines."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def curve(rows, metric, kind):
    rows = rows[rows["kind"] == kind].dropna(subset=metric)
    return list(zip(rows["epoch"], rows[metric], strict=True))


def test_training_and_evaluation_share_an_axis_of_epochs(tmp_path):
    epochs = [
        training(0.5, 3),
        training(1, 2),
        evaluation(1, 40, "holdout"),
        training(2, 1),
        evaluation(2, 50, "holdout"),
    ]
    rows = read_metrics(written(tmp_path, *epochs, evaluation(1, 30)))
    assert curve(rows, "loss", "train") == [(0.5, 3), (1, 2), (2, 1)]
    assert curve(rows, "t2v R@1", "holdout") == [(1, 40), (2, 50)]
    assert curve(rows, "t2v R@1", "test") == [(1, 30)]
    assert curve(rows, "loss", "test") == []


def test_curves_contain_every_split_that_selects_weights(tmp_path):
    splits = set(get_args(get_type_hints(RunConfig)["select_on"])) - {"last"}
    rows = read_metrics(written(tmp_path, *(evaluation(1, 40, split) for split in splits)))
    assert set(rows["kind"]) == splits


@pytest.mark.parametrize(
    ("again", "losses", "recalls"),
    [
        ([training(0.5, 9)], [(0.5, 9)], []),  # from scratch
        ([training(1.5, 9), evaluation(2, 60)], [(0.5, 3), (1, 2), (1.5, 9)], [(1, 40), (2, 60)]),  # from epoch 1
        ([evaluation(1, 70)], [(0.5, 3), (1, 2), (2, 1)], [(1, 70), (2, 50)]),  # the best epoch again
    ],
)
def test_the_last_lines_of_a_restarted_run_count(tmp_path, again, losses, recalls):
    before = [training(0.5, 3), training(1, 2), evaluation(1, 40), training(2, 1), evaluation(2, 50)]
    rows = read_metrics(written(tmp_path, *before, *again))
    assert curve(rows, "loss", "train") == losses
    assert curve(rows, "t2v R@1", "test") == recalls


def test_runs_have_the_names_of_their_folders(tmp_path):
    one, two, other_one = (written(tmp_path / name, training(1, 1)) for name in ("a/one", "a/two", "b/one"))
    assert list(read_runs([one, two])) == ["one", "two"]
    assert list(read_runs([one, other_one])) == [str(tmp_path / "a/one"), str(tmp_path / "b/one")]


def test_curves_are_drawn_into_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [written(tmp_path / f"run_{n}", training(1, 2), evaluation(1, 40 + n), training(2, 1)) for n in range(11)]
    picture = tmp_path / "figs" / "curves.png"
    assert main([*map(str, runs), "--curves", str(picture)]) == 0
    pixels = cv2.imread(str(picture)).reshape(-1, 3)
    colourful = pixels[pixels.max(1) - pixels.min(1) > 100]
    assert len({tuple(pixel) for pixel in colourful.tolist()}) >= len(runs)


def test_curves_have_a_panel_for_each_task_that_has_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *arguments, **options: figures.append(figure))
    recognition = {"time": 0.0, "step": 1, "kind": "test", "top1": 62.5, "top5": 100.0}
    retrieval, other = (
        written(tmp_path / name, training(1, 2), line)
        for name, line in (("retrieval", evaluation(1, 40)), ("recognition", recognition))
    )
    for runs, titles in (([retrieval], ["T2V R@1"]), ([other], ["top-1"]), ([retrieval, other], ["T2V R@1", "top-1"])):
        assert main([*map(str, runs), "--curves", str(tmp_path / "curves.png")]) == 0
        found = [axes.get_title().split(",")[0] for axes in figures.pop().axes]
        assert found == ["training loss", "learning rate", *titles]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "metrics.jsonl: is empty"),
        (b'{"kind": "train", "epoch": 1.0}\n{"kind": "tr', "metrics.jsonl: line 2 is damaged"),
        (b'{"kind": "train", "step": 50, "loss": 1.0}\n', "line 1 is damaged"),
        (b'{"kind": "trial", "step": 50, "loss": 1.0}\n', "line 1 is damaged"),
        (b'{"kind": "train", "epoch": 1.0, "loss": "low"}\n', "line 1 is damaged"),
        (b"[1, 2]\n", "line 1 is damaged"),
        (b"\x89PNG\xff\n", "line 1 is damaged"),
        (None, "No such file"),
    ],
)
def test_files_that_are_not_metrics(tmp_path, capsys, content, message):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path), "--curves", str(tmp_path / "curves.png")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("curves.txt", "give a name that ends in .png"),
        ("curves.png", "--curves needs matplotlib: pip install matplotlib"),
    ],
)
def test_curves_that_cannot_be_drawn(tmp_path, capsys, monkeypatch, picture, message):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # an import raises ImportError
    path = written(tmp_path, training(1, 1))
    assert main([str(path), "--curves", str(tmp_path / picture)]) == 2
    assert message in capsys.readouterr().err
