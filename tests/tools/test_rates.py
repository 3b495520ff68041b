"""The learning rate of a row is chosen by held-out training videos alone."""

import json

import pandas as pd

from tools.rates import main

ROW = {
    "name": "LoRA, lr 1e-3", "method": "lora", "selection": "best epoch on held-out training videos", "epoch": 1,
    "trainable_parameters": 18432, "seed": 0, "t2v R@1": 99.0, "t2v MdR": 1.0, "v2t R@1": 98.0, "t2v twins": 77.0,
    "command": "python main_task_retrieval.py --lr 1e-3", "commit": "abc",
}  # fmt: skip


def a_run(folder, name="LoRA, lr 1e-3", held_out=((20.0, 30.0), (40.0, 50.0))):
    """Write what a run with --select_on holdout writes: test metrics, and one line of held-out metrics an epoch."""
    folder.mkdir()
    pd.DataFrame([ROW | {"name": name}]).to_csv(folder / "test.csv", index=False)
    lines = [{"kind": "train", "step": 1, "loss": 1.0}]
    lines += [
        {"kind": "holdout", "step": epoch, "t2v R@1": there, "t2v MdR": 2.0, "v2t R@1": back}
        for epoch, (there, back) in enumerate(held_out, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_a_row_has_the_held_out_metrics_of_the_last_epoch(tmp_path):
    rates = tmp_path / "rates.csv"
    assert main(["add", str(a_run(tmp_path / "run")), "--results_csv", str(rates)]) == 0
    (row,) = pd.read_csv(rates).to_dict("records")
    assert row["t2v R@1"] == 40.0
    assert row["v2t R@1"] == 50.0
    assert "t2v twins" not in row, "held-out videos have no such metric, and that of the test must not pass for one"
    assert row["epoch"] == 2
    assert row["selection"] == "held-out videos, last epoch"
    assert {name: row[name] for name in ("name", "method", "seed", "command", "commit", "trainable_parameters")} == {
        name: ROW[name] for name in ("name", "method", "seed", "command", "commit", "trainable_parameters")
    }


def test_the_best_rate_is_that_of_the_best_held_out_videos(tmp_path, capsys):
    """R@1 of both directions counts; of equal rates the lowest is taken, by value and not by letters."""
    rates = tmp_path / "rates.csv"
    for number, (name, recall) in enumerate(
        [
            ("LoRA, lr 1e-2", (40.0, 50.0)),
            ("LoRA, lr 9e-3", (50.0, 40.0)),
            ("LoRA, lr 1e-4", (60.0, 10.0)),
            ("LoRA, more, lr 1", (90.0, 90.0)),
        ]
    ):
        run = a_run(tmp_path / str(number), name, [recall])
        assert main(["add", str(run), "--results_csv", str(rates)]) == 0
    capsys.readouterr()
    assert main(["best", str(rates), "LoRA"]) == 0
    assert capsys.readouterr().out == "9e-3\n"
    assert main(["best", str(rates), "LoRA, more"]) == 0
    assert capsys.readouterr().out == "1\n"


def test_mistakes_get_one_sentence(tmp_path, capsys):
    rates, run = tmp_path / "rates.csv", a_run(tmp_path / "run", held_out=[])
    assert main(["best", str(rates), "LoRA"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["add", str(run), "--results_csv", str(rates)]) == 2
    assert "train with --select_on holdout" in capsys.readouterr().err
    assert not rates.exists()
    (run / "metrics.jsonl").write_text("{\n")
    assert main(["add", str(run), "--results_csv", str(rates)]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert main(["add", str(a_run(tmp_path / "other")), "--results_csv", str(rates)]) == 0
    assert main(["best", str(rates), "STOP"]) == 2
    assert "has no row STOP, lr RATE" in capsys.readouterr().err


def test_recognition_is_decided_by_top_1(tmp_path, capsys):
    rates = tmp_path / "rates.csv"
    same = {"selection": "", "trainable_parameters": 1, "seed": 0}
    tried = (("1e-3", 30.0, 90.0), ("1e-2", 40.0, 50.0))
    rows = [{"name": f"LoRA, lr {rate}", **same, "top1": top1, "top5": top5} for rate, top1, top5 in tried]
    pd.DataFrame(rows).to_csv(rates, index=False)
    assert main(["best", str(rates), "LoRA"]) == 0
    assert capsys.readouterr().out == "1e-2\n"
