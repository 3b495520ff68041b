"""The training protocol of STAN's release, with a method that is not STAN: cropped clips, its schedule and its loss."""

import json
from itertools import pairwise

import torch
from safetensors.torch import load_file

from dataloaders.frames import FrameReader
from main_task_retrieval import main
from tests.training_runs import METHODS, interrupt_after, lines_of, run, training

PROTOCOL = [
    "--schedule", "periodic_cosine", "--warmup_proportion", "0.25", "--cosine_epochs", "0.5",
    "--loss", "summed_info_nce", "--gather_gradient", "own", "--max_grad_norm", "5", "--adam_eps", "1e-8",
    "--frame_sampling", "stan", "--frame_transform", "bilinear", "--crop_scale", "0.08", "--train_short_side", "40",
]  # fmt: skip


def test_an_interrupted_run_goes_on_to_the_bit(small_data, tmp_path, monkeypatch, capsys):
    flags = [*METHODS["clip4clip"], *PROTOCOL]
    assert main(training(small_data, tmp_path / "whole", *flags)) == 0
    rates = [line["lr"] for line in lines_of(tmp_path / "whole", "train")]
    assert min(rates) < 0.1 * max(rates)
    assert any(later > rate for rate, later in pairwise(rates[3:]))  # it rises again
    with monkeypatch.context() as patched:
        interrupt_after(patched, 7)
        run(training(small_data, tmp_path / "cut", *flags), 75)
    other = training(small_data, tmp_path / "cut", *flags, "--train_short_side", "48", "--resume", "auto")
    assert main(other) == 2
    assert "train_short_side is 40 there and 48 here" in capsys.readouterr().err
    assert main(training(small_data, tmp_path / "cut", *flags, "--resume", "auto")) == 0
    whole, cut = (load_file(tmp_path / folder / "last.safetensors") for folder in ("whole", "cut"))
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())


def test_evaluation_cuts_squares_out_of_larger_frames(small_data, tmp_path, monkeypatch):
    sides = []
    read = FrameReader.__call__
    monkeypatch.setattr(
        FrameReader, "__call__", lambda self, *a, **k: sides.append(self.short_side) or read(self, *a, **k)
    )
    flags = ["--do_eval", *small_data.flags(), *METHODS["clip4clip"], "--output_dir", str(tmp_path / "run")]
    assert main([*flags, "--num_thread_reader", "0", "--test_short_side", "40", "--frame_transform", "bilinear"]) == 0
    assert set(sides) == {40}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["test_short_side"] == 40
    assert main([*flags, "--test_short_side", "8"]) == 2
