"""Mug-STAN on the engine: its rows of words and frames in training, on two processes, and in both tasks' scores."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import gather_rows, process_group
from engine.precision import autocast_for
from engine.run import EXIT_INTERRUPTED
from engine.tasks.base import Part
from engine.tasks.contrastive import ContrastiveStep
from main_task_recognition import main as recognition
from main_task_retrieval import main as retrieval
from modules.methods import build_method
from modules.rows import tensors_of
from modules.stan.mug import WordRows
from tests.processes import run_as_group
from tests.tiny import tiny_batch, tiny_clip
from tests.training_runs import ROOT, assert_same_weights, interrupt_after, lines_of, training

MUG = ["--method", "mug_stan", "--stan_layers", "1", "--lr", "1e-3", "--coef_lr", "0.1"]


def save_rows_and_gradients(folder: Path) -> None:
    """Take training steps on this process of a group: rows gathered, and gradients in one part and in two."""
    video, frame_mask, token_ids = tiny_batch(seed=3, batch=4)
    frame_mask[3, 1:] = False
    token_ids[2, 4], token_ids[2, 5:] = 49407, 0
    video = (video.clamp(0, 1) * 255).to(torch.uint8)
    gradients = {}
    with process_group() as process:
        share = tuple(tensor.chunk(process.world_size)[process.rank] for tensor in (video, frame_mask, token_ids))
        for mug, gather in (("simple", "sum"), ("simple", "own"), ("wti", "sum")):
            torch.manual_seed(0)
            method = build_method("mug_stan", tiny_clip(), mug=mug, drop_path=0.0)
            step = ContrastiveStep(method, autocast_for("fp32", torch.device("cpu")), gather)
            model = DistributedDataParallel(step) if process.world_size > 1 else step
            for count, pieces in ((1, [Part(share)]), (2, step.in_parts(share, 2)[1])):
                method.zero_grad()
                for number, piece in enumerate(pieces):  # as `engine.train`: processes meet in the last part alone
                    waits = number < len(pieces) - 1 and isinstance(model, DistributedDataParallel)
                    with model.no_sync() if waits else nullcontext():
                        model(*piece.inputs).backward()
                found = {name: p.grad.clone() for name, p in method.trainable_parameters()}
                gradients[mug, gather, count] = found
        with torch.no_grad():
            text = gather_rows(method.encode_text(share[2]))
        assert isinstance(text, WordRows)
    torch.save({"text": tensors_of(text), "gradients": gradients}, folder / f"{process.world_size}_{process.rank}.pt")


def test_two_processes_equal_one_in_one_part_and_in_two(tmp_path):
    """ "own" is half of it for what lies before the gather."""
    save_rows_and_gradients(tmp_path)
    run_as_group(2, save_rows_and_gradients, tmp_path)
    alone, *both = (torch.load(tmp_path / name) for name in ("1_0.pt", "2_0.pt", "2_1.pt"))
    for results in (alone, *both):
        for ours, theirs in zip(results["text"], alone["text"], strict=True):
            torch.testing.assert_close(ours, theirs)
        for (mug, gather, count), found in results["gradients"].items():
            factor = 2 if gather == "own" and results is not alone else 1
            for name, expected in alone["gradients"][mug, "sum", 1].items():
                close = (factor * found[name] - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-6
                assert close, (mug, gather, count, name)


def twins(small_data, folder: Path) -> str:
    path = folder / "twins.csv"
    path.write_text("video_id,twin_id\nvideo10,video11\n")
    return str(path)


def test_a_retrieval_run_resumes_and_scores_with_all_columns(small_data, tmp_path, monkeypatch):
    flags = [*MUG, "--epochs", "1", "--gradient_accumulation_steps", "2", "--loss", "symmetric_info_nce"]
    extra = ["--dsl", "--qb_norm", "--querybank_size", "9", "--twins_csv", twins(small_data, tmp_path)]
    assert retrieval(training(small_data, tmp_path / "whole", *flags, *extra)) == 0
    with monkeypatch.context() as patched:
        interrupt_after(patched, 3)
        assert retrieval(training(small_data, tmp_path / "cut", *flags, *extra)) == EXIT_INTERRUPTED
    assert retrieval(training(small_data, tmp_path / "cut", *flags, *extra, "--resume", "auto")) == 0
    assert_same_weights(tmp_path / "cut", tmp_path / "whole")
    weights = ["--init_model", str(tmp_path / "whole/last.safetensors"), "--output_dir", str(tmp_path / "again")]
    assert retrieval(["--do_eval", *small_data.flags(), *MUG[:2], *extra, *weights]) == 0
    (trained,), (again,) = (
        [{k: v for k, v in line.items() if k.startswith(("t2v", "v2t"))} for line in lines_of(tmp_path / run, "test")]
        for run in ("whole", "again")
    )
    assert trained == again
    assert {"t2v twins", "t2v R@1 (DSL)", "v2t R@1 (DSL)", "t2v R@1 (QB-Norm)"} <= trained.keys()


def test_recognition_scores_words_of_each_text_with_frames(small_actions, tmp_path):
    """Several texts of a class score it apart, since their words have no mean."""
    templates = tmp_path / "templates.txt"
    templates.write_text("a video of {}.\n{}\n")
    few = ["--epochs", "1", "--batch_size", "8", "--templates", str(templates)]
    run = tmp_path / "run"
    assert recognition(["--do_train", *small_actions.flags(), *MUG, *few, "--output_dir", str(run)]) == 0
    assert all(np.isfinite([line["loss"] for line in lines_of(run, "train")]))
    weights = ["--init_model", str(run / "last.safetensors"), "--output_dir", str(tmp_path / "again")]
    more = ["--batch_size_val", "3", "--templates", str(templates)]
    assert recognition(["--do_eval", *small_actions.flags(), *MUG[:2], *weights, *more]) == 0
    (trained,), (again,) = lines_of(run, "test"), lines_of(tmp_path / "again", "test")
    assert (trained["top1"], trained["mean_class"]) == (again["top1"], again["mean_class"])


def test_a_linear_head_is_refused(small_actions, tmp_path, capsys):
    flags = [*small_actions.flags(), *MUG, "--classifier", "linear", "--output_dir", str(tmp_path / "run")]
    assert recognition(["--do_train", *flags]) == 2
    assert "--classifier linear needs one vector of a clip, and MugSTAN has several" in capsys.readouterr().err


def test_describe_counts_wti(small_data, capsys):
    counts = []
    for mug in ("simple", "wti"):
        assert retrieval(["--describe", *small_data.flags(), *MUG[:2], "--mug", mug]) == 0
        counts.append(json.loads(capsys.readouterr().out)["trainable_parameters"])
    assert counts[1] - counts[0] == 2 * (24 + 1)


DIDEMO = """
import resource, time
import numpy as np, torch
from engine.tasks.retrieval_metrics import in_tiles, retrieval_metrics
from modules.frame_rows import FrameRows
from modules.rows import take
from modules.stan.mug import WordRows, mug_similarity, prepare_tokens, words_until_end

generator = torch.Generator().manual_seed(0)
ends = torch.randint(10, 77, (1000,), generator=generator)
words = torch.randn(1000, 77, 512, generator=generator)
text = prepare_tokens(WordRows(words, words_until_end(ends, 77)))
frames = torch.randn(1000, 64, 512, generator=generator).add_(words[:, :1])
video = prepare_tokens(FrameRows(frames, torch.ones(1000, 64, dtype=torch.bool)))

@torch.no_grad()
def similarity(captions, videos):
    return mug_similarity(take(text, captions), take(video, videos))

start = time.process_time()
metrics = retrieval_metrics(in_tiles(similarity), np.arange(1000), 1000)
print(metrics["text_to_video"]["R@1"])
print(time.process_time() - start)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_an_evaluation_of_didemo_s_size_stays_below_two_gigabytes():
    """A thousand captions of 77 words and a thousand clips of 64 frames; S of all pairs would take 20 GB. The memory is
    that of the whole process, with the rows before and after `prepare`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", DIDEMO], capture_output=True, text=True, env=environment, check=True, cwd=ROOT
    )
    recall, seconds, mib = map(float, done.stdout.split())
    print(f"R@1 {recall}, {seconds:.0f} s of one core, {mib:.0f} MiB")
    assert recall > 50
    assert mib < 2000
