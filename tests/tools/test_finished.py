"""Rows that a script of tables leaves out were made as it would make them now, or it stops."""

import os
import shlex
import subprocess
import sys

import pandas as pd
import pytest

from tests.launch_scripts import commands_of, write_recorder
from tests.markdown import ROOT
from tools.finished import main

SCRIPT = ROOT / "scripts/ablation_moving_shapes.sh"
FLAGS = "--do_train --row_name STOP --seed 1 --datatype msrvtt --train_csv a/t.csv --val_csv a/v.csv"
FLAGS += " --features_path a/videos --data_path a/d.json"


def write_results(path, name, command):
    row = {"name": name, "seed": 1, "selection": "last", "trainable_parameters": 9, "t2v R@1": 50.0, "command": command}
    pd.DataFrame([row]).to_csv(path, index=False)


@pytest.fixture
def table(tmp_path):
    """Return a function that writes a row made by flags, and says what the check of planned flags returns."""

    def check(made, planned, name="STOP", program="main_task_retrieval.py"):
        results, plan = tmp_path / "table.csv", tmp_path / "plan"
        command = shlex.join(["python", program, *FLAGS.split(), *made.split()])
        write_results(results, name, command)
        words = [str(results), "main_task_retrieval.py", *FLAGS.split(), *planned.split()]
        plan.write_text("".join(f"{word}\0" for word in words))
        return main([str(plan)])

    return check


@pytest.mark.parametrize(
    ("made", "planned"),
    [
        ("--method stop --lr 1e-3", "--lr 0.001 --method stop"),
        ("", "--max_frames 12"),  # the default
        ("--num_thread_reader 0", "--num_thread_reader 4 --compile"),
        ("--features_path b/videos --val_csv b/v.csv", "--frame_cache c"),
        ("--pretrained_clip_name x/clip.safetensors", "--pretrained_clip_name y/clip.safetensors"),
        ("--init_model /a/STOP_1/averaged.pt", "--init_model runs/STOP_1/averaged.pt"),
        ("--no-do_train --do_eval --epochs 3 --lr 1", "--no-do_train --do_eval"),
    ],
)
def test_the_same_numbers_may_cost_more(table, made, planned, capsys):
    assert table(made, planned) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("made", "planned", "differs"),
    [
        ("", "--epochs 8", "--epochs 5, not 8"),
        ("--method stop", "--method stop --eta 2", "--eta 4, not 2"),
        ("--method stop", "--method vpt", "--method 'stop', not 'vpt'"),
        ("", "--twins_csv t.csv", "--twins_csv '', not 't.csv'"),
        ("--val_csv other.csv", "", "--val_csv 'other.csv', not 'v.csv'"),
        ("--init_model runs/a/last.pt", "--init_model runs/b/last.pt", "--init_model 'a/last.pt', not 'b/last.pt'"),
        ("--frame_cache c --frame_cache_format jpeg", "", "--frames 'jpeg frame cache', not ''"),
        ("--no-do_train --do_eval", "", "--do_train False, not True"),
    ],
)
def test_other_numbers_are_refused(table, made, planned, differs, capsys):
    assert table(made, planned) == 2
    error = capsys.readouterr().err
    assert "table.csv: the row STOP, seed 1 was made with " in error
    assert differs in error
    assert "set `results` to another file" in error
    assert error.count("\n") == 1


def test_a_command_of_another_version_is_told(table, capsys):
    assert table("--gone 3", "") == 0
    told = capsys.readouterr().err
    assert "note:" in told
    assert "the row STOP, seed 1 cannot be compared" in told
    assert "--gone" in told


def test_rows_of_other_names_are_none_of_its_business(table):
    assert table("--epochs 3", "--epochs 8", name="VPT") == 0


def test_a_script_stops_before_it_trains(tmp_path):
    """One seed is finished, the other is missing."""
    (command,) = [
        words
        for words in commands_of(
            SCRIPT, write_recorder(tmp_path), only="^STOP$", seeds="1", results=f"{tmp_path}/t.csv"
        )
        if words[0].endswith("main_task_retrieval.py")
    ]
    made = shlex.join(["python", "main_task_retrieval.py", *command[1:]])
    write_results(tmp_path / "t.csv", "STOP", made)
    python, trained = tmp_path / "tools-only", tmp_path / "trained"
    python.write_text(
        '#!/usr/bin/env bash\ncase "$*" in\n'
        f'    *main_task*) echo "$*" >>{trained} ;;\n    preprocess/*) ;;\n    *) exec {sys.executable} "$@" ;;\nesac\n'
    )
    python.chmod(0o755)

    def run(**environment):
        given = {"PYTHON": str(python), "NGPU": "1", "runs": f"{tmp_path}/runs", "results": f"{tmp_path}/t.csv"}
        given |= {"only": "^STOP$", "seeds": "1 2"} | environment
        return subprocess.run(
            ["bash", str(SCRIPT)], env=os.environ | given, capture_output=True, text=True, check=False
        )

    refused = run(epochs="9")
    assert refused.returncode == 2
    assert "the row STOP, seed 1 was made with --epochs" in refused.stderr
    assert not trained.exists()
    assert run(seeds="1 2").returncode == 0
    assert [line.partition("--seed ")[2].split()[0] for line in trained.read_text().splitlines()] == ["2"]
    (tmp_path / "t.csv").write_text("no results\n")
    refused = run(seeds="3")
    assert refused.returncode == 2
    assert "is not a results csv" in refused.stderr
    assert len(trained.read_text().splitlines()) == 1
