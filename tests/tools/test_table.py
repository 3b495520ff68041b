"""The comparison has measured and published numbers in separate columns, and operations of the settings that ran."""

import csv
import itertools
import json
import shlex

import cv2
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.describe import describe
from tests.markdown import ROOT
from tools.table import CITED, CITED_METRICS, apart, main, read_cited


@pytest.fixture
def results(small_data, tmp_path):
    """Return a results file: CLIP4Clip untrained, STOP with two seeds, LoRA of rank 2, a row with a guessed rate."""

    def row(name, method, seed, recall, *flags, selection="last epoch", trained=1_500_000):
        command = ["python", "main_task_retrieval.py", "--method", method, "--pretrained_clip_name"]
        mode = "--do_eval" if selection == "zero-shot" else "--do_train"
        command += [str(small_data.clip), mode, *small_data.flags(), "--max_frames", "3", "--max_words", "8", *flags]
        return {
            "name": name, "method": method, "seed": seed, "selection": selection, "trainable_parameters": trained,
            "t2v R@1": recall, "v2t R@1": recall / 2, "command": shlex.join(command),
        }  # fmt: skip

    path = tmp_path / "results.csv"
    pd.DataFrame(
        [
            row("zero-shot", "clip4clip", 0, 30.0, selection="zero-shot"),
            row("LoRA", "lora", 0, 45.0, "--lora_dim", "2"),
            row("MV-Adapter", "mv_adapter", 0, 40.0, "--shared_blocks", "1", trained=4_608),
            row("Bias, learning rate not published", "bias", 0, 35.0),
            row("STOP", "stop", 0, 50.0),
            row("STOP", "stop", 1, 54.0),
        ]
    ).to_csv(path, index=False)
    return path


def table_of(printed):
    header, _, *lines = printed.strip().splitlines()
    names = [cell.strip() for cell in header.split("|")[1:-1]]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    return names, {row[0]: row for row in rows}


def test_the_table(results, small_data, tmp_path, capsys):
    benchmark = tmp_path / "benchmark.json"
    steps = [{"method": "stop", "floor_ratio": 1.4}, {"method": "lora", "floor_ratio": 1.1}]
    steps.append({"method": "mv_adapter --shared_blocks 1", "floor_ratio": 1.2})
    benchmark.write_text(json.dumps({"settings": {"pretrained_clip_name": str(small_data.clip)}, "methods": steps}))
    picture = tmp_path / "chart.png"
    assert main([str(results), "--benchmark", str(benchmark), "--chart", str(picture)]) == 0
    header, rows = table_of(capsys.readouterr().out)
    assert header[:7] == ["", "trained", "GFLOP", "step", "T2V R@1", "V2T R@1", "seeds"]
    cited = header.index("cited T2V R@1")
    assert cited == 7
    gflop = describe("stop", str(small_data.clip), "", {}, 3, 8)["gflops_per_clip"]
    assert rows["STOP"][1:7] == ["1.50 M", f"{gflop:.1f}", "1.40", "52.0 ± 2.8", "26.0 ± 1.4", "2"]
    assert rows["STOP"][cited:] == ["47.7", "71.4", "81.1", "15.2", "46.1", "71.6", "81.0", "12.2", "STOP's table"]
    assert rows["zero-shot"][1] == "0.00 M"
    assert rows["zero-shot"][3] == ""
    assert rows["LoRA"][3] == "", "the benchmark's row has the default rank"
    assert rows["MV-Adapter"][1:4] == ["0.005 M", rows["MV-Adapter"][2], "1.20"], "on any number of frames and words"
    others = tmp_path / "others.json"
    steps[1]["method"] = "lora --lora_dim 2"
    others.write_text(json.dumps({"settings": {"pretrained_clip_name": str(small_data.clip)}, "methods": steps[1:2]}))
    assert main([str(results), "--benchmark", str(benchmark), str(others)]) == 0
    _, rows = table_of(capsys.readouterr().out)
    assert (rows["STOP"][3], rows["LoRA"][3]) == ("1.40", "1.10")
    benchmark.write_text(json.dumps({"settings": {"pretrained_clip_name": "ViT-B/32"}, "methods": steps}))
    assert main([str(results), "--benchmark", str(benchmark)]) == 0
    _, rows = table_of(capsys.readouterr().out)
    assert (rows["STOP"][3], rows["LoRA"][3]) == ("", ""), "measured on another CLIP"
    assert rows["Bias, learning rate not published"][4] == "35.0"
    assert rows["Bias, learning rate not published"][cited] == "39.7"
    assert rows["MPT-Linear"][1:cited] == [""] * 6, "a row that is cited only has nothing measured"
    assert "Bias" not in rows
    height, width = cv2.imread(str(picture)).shape[:2]
    assert width > 2 * height


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 100)), min_size=1, max_size=30))
def test_labels_of_the_chart_do_not_cover_each_other(points):
    """Check that labels only move up, and that no two are close in both directions."""
    places, heights = [float(x) for x, _ in points], [float(y) for _, y in points]
    labels = apart(places, heights)
    assert all(label >= height for label, height in zip(labels, heights, strict=True))
    width, height = 0.08 * (max(places) - min(places)), 0.03 * (max(heights) - min(heights))
    for one, other in itertools.combinations(range(len(points)), 2):
        if abs(places[one] - places[other]) <= width:
            assert abs(labels[one] - labels[other]) >= height - 1e-9


def test_a_chart_of_nothing_is_refused(results, tmp_path, capsys):
    rows = pd.read_csv(results)
    rows = rows[rows["name"] == "zero-shot"]
    rows["command"] = rows["command"].str.replace("--pretrained_clip_name ", "--pretrained_clip_name missing")
    rows.to_csv(results, index=False)
    assert main([str(results), "--no_cited", "--chart", str(tmp_path / "chart.png")]) == 2
    assert "--chart has nothing to draw" in capsys.readouterr().err
    assert not (tmp_path / "chart.png").exists()


def test_other_data_has_no_published_rows(results, capsys):
    assert main([str(results), "--no_cited"]) == 0
    header, rows = table_of(capsys.readouterr().out)
    assert list(rows) == ["STOP", "LoRA", "MV-Adapter", "Bias, learning rate not published", "zero-shot"], (
        "the best first"
    )
    assert header[-1] == "seeds"


def test_the_published_rows(capsys):
    """Every number is one; every row says where it stands."""
    for name, row in read_cited(CITED).items():
        assert row["source"], name
        numbers = [float(row[metric]) for metric in CITED_METRICS if row[metric]]
        assert row["t2v R@1"]
        assert all(0 < number < 100 for number in numbers)
    with open(CITED, newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("content", ["{}", "[1]", "nothing", '{"methods": [{"method": "stop"}]}'])
def test_another_file_than_a_benchmark_is_refused(results, tmp_path, capsys, content):
    other = tmp_path / "other.json"
    other.write_text(content)
    assert main([str(results), "--benchmark", str(other)]) == 2
    assert f"{other}: is not what benchmarks.methods" in capsys.readouterr().err


def test_a_row_of_another_program_is_refused(results, capsys):
    rows = pd.read_csv(results)
    rows["command"] = "python other.py --do_train"
    rows.to_csv(results, index=False)
    assert main([str(results)]) == 2
    assert "was not written by a training program" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--chart", "--benchmark", "--cited"])
def test_a_table_of_backbones_has_no_other_columns(results, tmp_path, capsys, flag):
    assert main([str(results), "--backbones", flag, str(tmp_path / "x.png")]) == 2
    assert f"{flag} has no effect with --backbones" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_another_csv_than_published_rows_is_refused(results, capsys):
    assert main([str(results), "--cited", str(results)]) == 2
    assert "is no csv of published rows" in capsys.readouterr().err


def test_backbones_with_their_protocol(results, small_data, capsys):
    rows = pd.read_csv(results).iloc[[0, 1]].assign(videos="7")
    rows.loc[1, "command"] = rows.loc[1, "command"].replace(str(small_data.clip), "/gone.safetensors")
    rows.to_csv(results, index=False)
    assert main([str(results), "--backbones"]) == 0
    header, cells = table_of(capsys.readouterr().out)
    assert header == ["", "parameters (vision)", "GFLOP", "T2V R@1", "V2T R@1", "protocol"]
    assert list(cells) == ["LoRA", "zero-shot"], "the best first"
    gflop = describe("clip4clip", str(small_data.clip), "", {}, 3, 8)["gflops_per_clip"]
    assert cells["zero-shot"][2:5] == [f"{gflop:.1f}", "30.0", "15.0"]
    assert cells["zero-shot"][1] == "0.8 M (0.0)"
    frames = "7 videos; 3 frames, uniform; 8 words"
    assert cells["zero-shot"][5] == f"CLIP on video; {frames}; 32/8 pixels, crop, bicubic"
    assert cells["LoRA"][1:3] == ["", ""], "its backbone is not here"
    assert cells["LoRA"][5] == f"lora, last epoch; {frames}"


def test_the_zero_shot_table_of_the_docs_is_that_of_its_file(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["results/zero_shot_moving_shapes.csv", "--backbones"]) == 0
    assert capsys.readouterr().out.strip() in (ROOT / "docs/backbones.md").read_text()
