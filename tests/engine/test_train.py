"""The training loop gives the same numbers for any number of processes and parts, and after any interruption."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo
from safetensors.torch import load_file

from engine.checkpoint import read_resume_point
from engine.optim import released, warmup_cosine
from engine.precision import autocast_for
from engine.run import EXIT_INTERRUPTED
from engine.tasks.contrastive import ContrastiveStep
from engine.train import Training
from main_task_retrieval import main
from modules.block import Block
from modules.methods import build_method
from tests.processes import free_port, run_as_group
from tests.tiny import tiny_batch, tiny_clip
from tests.training_runs import METHODS, ROOT, assert_same_weights, interrupt_after, lines_of, run, training

ALL_RUNS = {"1 x 1": (1, 1), "1 x 2": (1, 2), "1 x 4": (1, 4), "2 x 2": (2, 2), "4 x 1": (4, 1)}  # processes, parts


@pytest.mark.parametrize(
    ("method", "more", "runs"),
    [
        pytest.param("clip4clip", [], ALL_RUNS, marks=pytest.mark.slow),
        pytest.param("stop", [], ALL_RUNS, marks=pytest.mark.slow),
        ("stop", [], {name: ALL_RUNS[name] for name in ("1 x 1", "2 x 2")}),
        pytest.param(
            "stop",
            ["--same_video", "positives", "--batch_size", "8", "--epochs", "5", "--lr", "1e-4"],
            {name: ALL_RUNS[name] for name in ("1 x 1", "2 x 2")},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["clip4clip", "stop", "stop, few", "same video"],
)
def test_processes_and_parts_change_nothing(small_data, tmp_path, method, more, runs):
    """Check that 1, 2 and 4 processes, with 1, 2 and 4 parts, give the same loss curve and the same weights."""
    for name, (processes, parts) in runs.items():
        flags = [*METHODS[method], *more, "--gradient_accumulation_steps", str(parts)]
        flags = training(small_data, tmp_path / name, *flags)
        if processes == 1:
            assert main(flags) == 0
        else:
            run_as_group(processes, run, flags)
    curve = [line["loss"] for line in lines_of(tmp_path / "1 x 1", "train")]
    assert len(set(curve)) == 10
    for name in runs:
        assert [line["loss"] for line in lines_of(tmp_path / name, "train")] == pytest.approx(curve, abs=1e-5)
        assert_same_weights(tmp_path / name, tmp_path / "1 x 1", atol=1e-5, rtol=0)
        assert lines_of(tmp_path / name, "test")[-1]["t2v R@1"] == lines_of(tmp_path / "1 x 1", "test")[-1]["t2v R@1"]


@pytest.mark.parametrize("schedule", ["warmup_cosine", "released"])
def test_the_logged_learning_rate_is_that_of_the_step(small_data, tmp_path, monkeypatch, schedule):
    """Check every step, including the first one and those where the rate changes a lot to the next step."""
    used, take = [], torch.optim.AdamW.step

    def noted(self, *arguments, **more):
        used.append(max(group["lr"] for group in self.param_groups))
        return take(self, *arguments, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    assert main(training(small_data, tmp_path, *METHODS["clip4clip"], "--schedule", schedule)) == 0
    assert [line["lr"] for line in lines_of(tmp_path, "train")] == used
    if schedule == "released":
        assert used == pytest.approx([released(step, 10, 0.1, 1e-3) for step in range(10)])
    else:
        assert used == pytest.approx([1e-3 * warmup_cosine(step, 10, 0.1) for step in range(10)])


def videos_of_batches(monkeypatch) -> list[list[int]]:
    """Return a list that receives the video numbers of every batch that is trained on from now on."""
    take_step, videos = Training.take_step, []

    def noted(self, batch):
        videos.append(batch["video_index"].tolist())
        return take_step(self, batch)

    monkeypatch.setattr(Training, "take_step", noted)
    return videos


def test_same_video_changes_the_loss_or_the_batches(small_data, tmp_path, monkeypatch):
    """Check that "positives" has the batches of "negatives" but another loss, and "apart" no video twice in a batch.

    The losses differ because frames are drawn at random.
    """
    videos, curves = {}, {}
    for same_video in ("negatives", "positives", "apart"):
        flags = training(small_data, tmp_path / same_video, *METHODS["stop"], "--same_video", same_video)
        with monkeypatch.context() as patched:
            videos[same_video] = videos_of_batches(patched)
            assert main([*flags, "--lr", "0", "--batch_size", "8"]) == 0
        curves[same_video] = [line["loss"] for line in lines_of(tmp_path / same_video, "train")]
        assert (
            f"negatives per query {'up to ' * (same_video == 'positives')}7"
            in (tmp_path / same_video / "log.txt").read_text()
        )
    assert videos["positives"] == videos["negatives"]
    assert all(len(set(batch)) == 8 for batch in videos["apart"])
    together = [len(set(batch)) < 8 for batch in videos["negatives"]]
    assert any(together)
    for ours, theirs, differs in zip(curves["positives"], curves["negatives"], together, strict=True):
        assert (abs(ours - theirs) > 1e-5) == differs


@pytest.mark.slow
def test_two_machines_equal_one(small_data, tmp_path):
    """Start two torchruns that find each other, with one process each, like scripts/slurm.sh."""
    assert main(training(small_data, tmp_path / "one", *METHODS["stop"])) == 0
    flags = training(small_data, tmp_path / "two", *METHODS["stop"])
    rendezvous = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_id=7", "--rdzv_backend=c10d"]
    rendezvous.append(f"--rdzv_endpoint=127.0.0.1:{free_port()}")
    command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, str(ROOT / "main_task_retrieval.py"), *flags]
    machines = [subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in range(2)]
    assert [machine.wait(timeout=240) for machine in machines] == [0, 0]
    assert_same_weights(tmp_path / "two", tmp_path / "one", atol=1e-5, rtol=0)


@pytest.mark.parametrize("video_index", [None, torch.tensor([1, 6, 1, 1])])
@pytest.mark.parametrize(
    ("dropout", "compiled"), [(0.0, False), (0.5, False), pytest.param(0.5, True, marks=pytest.mark.slow)]
)
def test_cached_gradients_are_exact(dropout, compiled, video_index):
    """Compare the gradients of four parts with those of the whole batch, including the temperature's gradient.

    With dropout, both passes of a part must draw the same random numbers.
    """
    method = build_method("stop", tiny_clip(), prompt_dropout=dropout).train()
    if compiled:
        method.compile(dynamic=False)
    method.clip.logit_scale.requires_grad_(True)
    step = ContrastiveStep(method, autocast_for("fp32", torch.device("cpu")))
    video, frame_mask, token_ids = tiny_batch(batch=4)
    inputs = (video.clamp(0, 1).mul(255).to(torch.uint8), frame_mask, token_ids)
    parts = list(zip(*(tensor.chunk(4) for tensor in inputs), strict=True))
    torch.manual_seed(3)
    loss, cached = step.in_parts((*inputs, *([] if video_index is None else [video_index])), 4)
    for part in cached:
        torch.set_rng_state(part.random_state)
        step(*part.inputs).backward()
    ours = {name: p.grad.clone() for name, p in method.trainable_parameters()}
    method.zero_grad()
    torch.manual_seed(3)
    text, clips = (torch.cat(rows) for rows in zip(*(step.embed(*part)[:2] for part in parts), strict=True))
    whole = step.batch_loss(text, clips, video_index)
    whole.backward()
    torch.testing.assert_close(loss, whole.detach())
    for name, parameter in method.trainable_parameters():
        rounding = 1e-6 * max(1.0, parameter.grad.abs().max().item())  # small values are sums of large ones
        torch.testing.assert_close(ours[name], parameter.grad, atol=rounding, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", ["stop", "clip4clip", "dgl", "stdd"])
def test_activation_checkpointing_changes_no_gradient(name):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        method = build_method(name, tiny_clip(), **({"max_frames": 4} if name == "dgl" else {}))
        for block in method.modules():
            if isinstance(block, Block):
                block.recompute = recompute
        torch.manual_seed(0)
        text, clips = method(*tiny_batch())
        method.similarity(text, clips).square().sum().backward()
        gradients.append({n: p.grad for n, p in method.trainable_parameters()})
    for n, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][n], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("step", "number"),  # an epoch has 5 steps
    [
        (3, signal.SIGTERM),
        (5, signal.SIGUSR1),
        (7, signal.SIGUSR1),
        pytest.param(3, signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(5, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(7, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_and_resumed_run_equals_a_whole_one(small_data, tmp_path, monkeypatch, step, number, capsys):
    """Compare to the bit, with dropout, random frames, a schedule, and a selection in progress."""
    flags = ["--method", "stop", "--lr", "1e-3", "--frame_sampling", "segment", "--select_on", "test"]
    flags += ["--same_video", "apart" if number == signal.SIGUSR1 else "positives"]
    assert main(training(small_data, tmp_path / "whole", *flags)) == 0
    with monkeypatch.context() as patched:
        interrupt_after(patched, step, number)
        assert main(training(small_data, tmp_path / "cut", *flags, "--resume", "auto")) == EXIT_INTERRUPTED
    assert "--resume auto goes on from there" in capsys.readouterr().err
    assert signal.getsignal(number) is signal.SIG_DFL
    assert main(training(small_data, tmp_path / "cut", *flags, "--resume", "auto")) == 0
    assert f"resumed after step {step} of 10" in (tmp_path / "cut" / "log.txt").read_text()
    assert_same_weights(tmp_path / "cut", tmp_path / "whole")
    for kind in ("train", "test"):
        assert lines_of(tmp_path / "cut", kind) == lines_of(tmp_path / "whole", kind)


def test_the_shares_of_phases_add_up_to_one(small_data, tmp_path):
    assert main(training(small_data, tmp_path, *METHODS["clip4clip"], "--epochs", "1")) == 0
    for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        if line["kind"] == "train":
            shares = [line[f"{phase}_share"] for phase in ("data", "forward", "backward", "optimiser")]
            assert all(share > 0 for share in shares)
            assert sum(shares) == pytest.approx(1, abs=1e-3)
            assert line["clips_per_second"] > 0


def test_resuming_a_finished_run_only_evaluates(small_data, tmp_path):
    flags = training(small_data, tmp_path, *METHODS["clip4clip"], "--resume", "auto")
    assert main(flags) == 0
    weights, result = load_file(tmp_path / "last.safetensors"), lines_of(tmp_path, "test")[-1]
    assert main(flags) == 0
    assert all(torch.equal(tensor, weights[n]) for n, tensor in load_file(tmp_path / "last.safetensors").items())
    assert lines_of(tmp_path, "test")[-1] == result
    assert len(lines_of(tmp_path, "train")) == 10


def test_the_newest_points_are_kept_and_damaged_ones_are_skipped(small_data, tmp_path, caplog):
    flags = training(small_data, tmp_path, *METHODS["clip4clip"], "--save_every", "2", "--keep_checkpoints", "3")
    assert main(flags) == 0
    points = sorted((tmp_path / "resume").iterdir())
    assert [point.name for point in points] == ["step_00000006.pt", "step_00000008.pt", "step_00000010.pt"]
    assert read_resume_point(points[1])["step"] == 8
    weights = load_file(tmp_path / "last.safetensors")
    points[2].write_bytes(points[2].read_bytes()[:-1000])  # cut short
    damaged = bytearray(points[1].read_bytes())
    damaged[len(damaged) // 2] ^= 255  # one byte is wrong
    points[1].write_bytes(damaged)
    assert main([*flags, "--resume", "auto"]) == 0
    written = (tmp_path / "log.txt").read_text()
    assert "step_00000010.pt: is damaged" in written
    assert "step_00000008.pt: is damaged" in written
    assert "resumed after step 6 of 10" in written
    assert all(torch.equal(tensor, weights[n]) for n, tensor in load_file(tmp_path / "last.safetensors").items())


def test_the_error_names_why_a_run_cannot_be_resumed(small_data, tmp_path, capsys):
    flags = training(small_data, tmp_path, *METHODS["stop"])
    assert main([*flags, "--epochs", "1"]) == 0
    point = str(tmp_path / "resume" / "step_00000005.pt")
    for more, message in (
        (["--intra_width", "16"], "intra_width is 88 there and 16 here"),
        (["--batch_size", "5"], "batch_size is 4 there and 5 here"),
        (["--same_video", "apart"], "same_video is 'negatives' there and 'apart' here"),
    ):
        for resume in ("auto", point):
            assert main([*flags, "--epochs", "1", *more, "--resume", resume]) == 2
            assert message in capsys.readouterr().err
    other = training(small_data, tmp_path, *METHODS["clip4clip"], "--epochs", "1")
    assert main([*other, "--resume", "auto"]) == 2
    assert "method is 'stop' there and 'clip4clip' here" in capsys.readouterr().err
    assert main([*flags, "--resume", str(tmp_path / "none.pt")]) == 2
    assert "none.pt: no such resume point" in capsys.readouterr().err
    (tmp_path / "other.pt").write_bytes(b"no point")
    assert main([*flags, "--resume", str(tmp_path / "other.pt")]) == 2
    assert "other.pt: is damaged" in capsys.readouterr().err


def test_another_backbone_is_refused(small_data, own_clip, tmp_path, capsys):
    flags = training(small_data, tmp_path, *METHODS["clip4clip"], "--epochs", "1")
    assert main(flags) == 0
    assert main([*flags, "--pretrained_clip_name", str(own_clip), "--resume", "auto"]) == 2
    assert "CLIP (sha256) is" in capsys.readouterr().err


@pytest.fixture
def own_clip(small_data, tmp_path) -> Path:
    from safetensors.torch import save_file

    path = tmp_path / "other_clip.safetensors"
    tensors = {name: tensor * 1.01 for name, tensor in load_file(small_data.clip).items()}
    save_file(tensors, path, {"activation": "quick_gelu"})
    return path


def test_a_run_from_scratch_sets_old_points_aside(small_data, tmp_path):
    flags = training(small_data, tmp_path, *METHODS["clip4clip"], "--epochs", "1")
    for _ in range(3):
        assert main(flags) == 0
    for folder in ("resume", "resume_before_1", "resume_before_2"):
        assert (tmp_path / folder / "step_00000005.pt").is_file()


def test_a_full_disk_loses_nothing(small_data, tmp_path, monkeypatch, capsys):
    flags = training(small_data, tmp_path, *METHODS["clip4clip"], "--save_every", "2")
    save, written = torch.save, []

    def until_full(content, path):
        save(content, path)
        written.append(path)
        if len(written) == 3:
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", until_full)
        assert main(flags) == 2
    message = capsys.readouterr().err
    assert "step_00000005.pt: could not be saved" in message
    assert "No space left on device" in message
    assert [p.name for p in sorted((tmp_path / "resume").iterdir())] == ["step_00000002.pt", "step_00000004.pt"]
    assert main([*flags, "--resume", "auto"]) == 0
    assert "resumed after step 4 of 10" in (tmp_path / "log.txt").read_text()


def test_a_gradient_that_is_not_finite_stops_the_run(small_data, tmp_path, monkeypatch, capsys):
    backward = Training.backward

    def poisoned(self, *inputs):
        loss = backward(self, *inputs)
        if self.step == 2:
            next(iter(self.parameters.values())).grad.fill_(np.nan)
        return loss

    monkeypatch.setattr(Training, "backward", poisoned)
    assert main(training(small_data, tmp_path, *METHODS["clip4clip"])) == 2
    message = capsys.readouterr().err
    assert "the norm of the gradient is nan in step 2 on process 0, with the videos video" in message


@pytest.mark.parametrize(("step", "points"), [(2, [2]), (3, [2]), (4, [2, 4])])  # an epoch has 5
@pytest.mark.parametrize("lag", [0, 1])
def test_weights_after_a_loss_that_is_not_finite_are_not_saved(
    small_data, tmp_path, monkeypatch, capsys, lag, step, points
):
    """Check the resume points and the checkpoint, if the loss is looked at in its step or one step later."""
    enqueue, backward, videos = Training.enqueue_step, Training.backward, []

    def poisoned(self, *inputs):
        return backward(self, *inputs) * (np.nan if self.step == step else 1)

    def noted(self, batch):
        self.lag = lag
        videos.append([self.items.video_id(item) for item in batch["index"].tolist()])
        return enqueue(self, batch)

    monkeypatch.setattr(Training, "backward", poisoned)
    monkeypatch.setattr(Training, "enqueue_step", noted)
    flags = training(small_data, tmp_path, *METHODS["clip4clip"], "--n_display", "100", "--save_every", "2")
    assert main(flags) == 2
    message = f"the loss is nan in step {step} on process 0, with the videos {', '.join(videos[step])} ...; lower --lr"
    assert message in capsys.readouterr().err
    assert len(videos) <= step + 1 + lag
    assert [point.name for point in sorted((tmp_path / "resume").iterdir())] == [f"step_{n:08}.pt" for n in points]
    assert not (tmp_path / "last.safetensors").exists()
