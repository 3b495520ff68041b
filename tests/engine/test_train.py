"""The training loop: the same numbers however the batch is divided and wherever the run is interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
import torch._dynamo
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from dataloaders.datasets import Batch, TrainingPairs
from dataloaders.frames import FrameReader
from dataloaders.samples import Sample
from engine.checkpoint import read_resume_point
from engine.config import OptimConfig
from engine.distributed import Process
from engine.logger import RunLogger
from engine.optim import released, warmup_cosine
from engine.train import ContrastiveStep, Training, autocast_for
from main_task_retrieval import EXIT_INTERRUPTED, main
from modules.clip import Block
from modules.methods import METHODS as ALL_METHODS
from modules.methods import build_method, method_options
from tests.processes import free_port, run_as_group
from tests.tiny import TINY, tiny_batch, tiny_clip

ROOT = Path(__file__).parent.parent.parent
METHODS = {
    "clip4clip": ["--method", "clip4clip", "--lr", "1e-3", "--coef_lr", "1"],
    "stop": ["--method", "stop", "--lr", "1e-3", "--prompt_dropout", "0", "--frame_sampling", "segment"],
}
ALL_RUNS = {"1 x 1": (1, 1), "1 x 2": (1, 2), "1 x 4": (1, 4), "2 x 2": (2, 2), "4 x 1": (4, 1)}  # processes, parts


def training(small_data, output: Path, *flags: str) -> list[str]:
    """20 pairs, 5 steps an epoch."""
    few = ["--epochs", "2", "--batch_size", "4", "--n_display", "1", "--output_dir", str(output)]
    return ["--do_train", *small_data.flags(), *few, *flags]


def run(flags: list[str], exit_code: int = 0) -> None:
    assert main(flags) == exit_code


def launch(processes: int, flags: list[str], *torchrun: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *torchrun]
    return [sys.executable, *launcher, str(ROOT / "main_task_retrieval.py"), *flags]


def lines_of(output: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    measured = re.compile("time|clips_per_second|.*_share")
    return [
        {name: value for name, value in line.items() if not measured.fullmatch(name)}
        for line in lines
        if line["kind"] == kind
    ]


def assert_same_weights(first: Path, second: Path, **tolerance: float) -> None:
    ours, theirs = load_file(first / "last.safetensors"), load_file(second / "last.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        if tolerance:
            mine, other = ours[name], theirs[name]
            if name.endswith("in_proj_bias"):
                # Not the keys' third: softmax removes it, so that its gradient is rounding alone, which Adam blows up.
                mine, other = (bias.view(3, -1)[[0, 2]] for bias in (mine, other))
            torch.testing.assert_close(mine, other, msg=lambda found, name=name: f"{name}: {found}", **tolerance)
        else:
            assert torch.equal(ours[name], theirs[name]), name


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
    """1, 2 and 4 processes, the batch in 1, 2 and 4 parts: one loss curve, one set of weights."""
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
    """The first step's too, and also where it is far from the next one's."""
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
    """The videos of every batch that is trained on from now on, by number."""
    take_step, videos = Training.take_step, []

    def noted(self, batch):
        videos.append(batch["video_index"].tolist())
        return take_step(self, batch)

    monkeypatch.setattr(Training, "take_step", noted)
    return videos


def test_what_other_captions_of_a_video_are(small_data, tmp_path, monkeypatch):
    """The same batches with another loss, as frames are drawn at random, or other batches with the same loss."""
    videos, curves = {}, {}
    for same_video in ("negatives", "positives", "apart"):
        flags = training(small_data, tmp_path / same_video, *METHODS["stop"], "--same_video", same_video)
        with monkeypatch.context() as patched:
            videos[same_video] = videos_of_batches(patched)
            assert main([*flags, "--lr", "0", "--batch_size", "8"]) == 0
        curves[same_video] = [line["loss"] for line in lines_of(tmp_path / same_video, "train")]
        assert (
            f"negatives a query {'up to ' * (same_video == 'positives')}7"
            in (tmp_path / same_video / "log.txt").read_text()
        )
    assert videos["positives"] == videos["negatives"]
    assert all(len(set(batch)) == 8 for batch in videos["apart"])
    together = [len(set(batch)) < 8 for batch in videos["negatives"]]
    assert any(together)
    for ours, theirs, differs in zip(curves["positives"], curves["negatives"], together, strict=True):
        assert (abs(ours - theirs) > 1e-5) == differs


def test_without_expanded_captions_it_is_all_the_same(small_data, tmp_path):
    for same_video in ("negatives", "positives", "apart"):
        flags = training(small_data, tmp_path / same_video, *METHODS["clip4clip"], "--same_video", same_video)
        assert main([*flags, "--no-expand_msrvtt_sentences"]) == 0
        assert_same_weights(tmp_path / same_video, tmp_path / "negatives", atol=1e-5, rtol=0)
    assert_same_weights(tmp_path / "apart", tmp_path / "negatives")


@pytest.mark.slow
def test_two_machines_equal_one(small_data, tmp_path):
    """Two torchruns that find each other, with a process each, as scripts/slurm.sh starts them."""
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
    """In parts as in one, the temperature's gradient included; with dropout, both passes of a part draw the same."""
    method = build_method("stop", tiny_clip(), prompt_dropout=dropout).train()
    if compiled:
        method.compile(dynamic=False)
    method.clip.logit_scale.requires_grad_(True)
    step = ContrastiveStep(method, autocast_for("fp32", torch.device("cpu")))
    video, frame_mask, token_ids = tiny_batch(batch=4)
    inputs = (video.clamp(0, 1).mul(255).to(torch.uint8), frame_mask, token_ids)
    parts = list(zip(*(tensor.chunk(4) for tensor in inputs), strict=True))
    torch.manual_seed(3)
    loss, cached, states = step.cache_gradients(parts, video_index)
    for part, gradient, state in zip(parts, cached, states, strict=True):
        torch.set_rng_state(state)
        step(*part, gradient).backward()
    ours = {name: p.grad.clone() for name, p in method.trainable_parameters()}
    method.zero_grad()
    torch.manual_seed(3)
    text, clips = (torch.cat(rows) for rows in zip(*(step.embed(*part) for part in parts), strict=True))
    whole = step.loss(text, clips, video_index)
    whole.backward()
    torch.testing.assert_close(loss, whole.detach())
    for name, parameter in method.trainable_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", ["stop", "clip4clip", "dgl"])
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


def interrupt_after(monkeypatch, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Have the run's own process get a signal once it has taken so many steps."""
    take_step = Training.take_step

    def and_then(self, batch):
        values = take_step(self, batch)
        if self.step == step:
            os.kill(os.getpid(), number)
        return values

    monkeypatch.setattr(Training, "take_step", and_then)


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
def test_interrupted_and_resumed_is_never_interrupted(small_data, tmp_path, monkeypatch, step, number, capsys):
    """Bit for bit, with dropout, frames drawn at random, a schedule and a selection under way."""
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


def test_where_the_time_goes(small_data, tmp_path):
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


def test_points_that_stay_and_damaged_ones(small_data, tmp_path, caplog):
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


def test_wrong_resume_names_the_difference(small_data, tmp_path, capsys):
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


def test_a_run_that_begins_anew_sets_old_points_aside(small_data, tmp_path):
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
def test_a_loss_that_is_not_finite_gets_nowhere(small_data, tmp_path, monkeypatch, capsys, lag, step, points):
    """Looked at at once or a step later: neither a resume point nor a checkpoint has such weights in it."""
    advance, backward, videos = Training.advance, Training.backward, []

    def poisoned(self, *inputs):
        return backward(self, *inputs) * (np.nan if self.step == step else 1)

    def noted(self, batch):
        self.lag = lag
        videos.append([self.pairs.video_id(pair) for pair in batch["index"].tolist()])
        return advance(self, batch)

    monkeypatch.setattr(Training, "backward", poisoned)
    monkeypatch.setattr(Training, "advance", noted)
    flags = training(small_data, tmp_path, *METHODS["clip4clip"], "--n_display", "100", "--save_every", "2")
    assert main(flags) == 2
    message = f"the loss is nan in step {step} on process 0, with the videos {', '.join(videos[step])} ...; lower --lr"
    assert message in capsys.readouterr().err
    assert len(videos) <= step + 1 + lag
    assert [point.name for point in sorted((tmp_path / "resume").iterdir())] == [f"step_{n:08}.pt" for n in points]
    assert not (tmp_path / "last.safetensors").exists()


FITTING = {"max_frames": 4, "cross_num_hidden_layers": 2}  # options of the methods that have them, for a tiny CLIP


def one_training(name: str, device: torch.device, folder: Path, **settings: Any) -> Training:
    """A method in training on pairs that cannot be read: the batches are `one_batch`'s."""
    known = {option.name for option in method_options(ALL_METHODS[name])}
    fitting = {option: value for option, value in FITTING.items() if option in known}
    options = fitting | settings.pop("options", {})
    method = build_method(name, tiny_clip(architecture=replace(TINY, text_width=TINY.embed_dim)), **options)
    samples = [Sample(f"video{number}", folder / "none.mp4", ("a caption",)) for number in range(4)]
    process = Process(0, 1, device)
    return Training(
        method.to(device).train(),
        TrainingPairs(samples, lambda caption: torch.zeros(1, 8), FrameReader(4, 32), False, 0),
        OptimConfig(batch_size=4, epochs=8, **settings),
        process,
        RunLogger(folder, process),
        seed=0,
        num_workers=0,
        prefetch_factor=2,
    )


def one_batch(seed: int) -> Batch:
    video, frame_mask, token_ids = tiny_batch(seed, batch=4)
    return {
        "video": video.clamp(0, 1).mul(255).to(torch.uint8),
        "frame_mask": frame_mask,
        "token_ids": token_ids,
        "index": torch.arange(4),
        "video_index": torch.tensor([0, 1, 1, 2]),
    }


def every_switch() -> list[Any]:
    """Every method as it is, and with each of its options that is not a number set otherwise."""
    found = []
    for name, method in ALL_METHODS.items():
        found.append((name, {}))
        for option in method_options(method):
            others = [not option.default] if option.type is bool else []
            if get_origin(option.type) is Literal:
                others = [choice for choice in get_args(option.type) if choice != option.default]
            found += [(name, {"options": {option.name: other}}) for other in others]
    return found


IN_OTHER_WAYS: list[Any] = [
    ("stop", {"gradient_accumulation_steps": 2}),
    ("stop", {"activation_checkpointing": True}),
    ("stop", {"same_video": "positives"}),
    ("stop", {"precision": "bf16"}),
    ("stop", {"precision": "fp16"}),
    ("stop", {"schedule": "released"}),
]


def named(value: Any) -> str:
    return str(value).replace("'", "")


class NoWaiting(TorchDispatchMode):
    """Raises for what would make the host wait if the tensors were a GPU's: their values asked for, or numbers of the
    host's made a tensor of."""

    WAITS = frozenset(
        {
            "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "lift_fresh",
            "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
        }
    )  # fmt: skip
    INDEXING = frozenset({"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        waits = name in self.WAITS or str(func) == "aten.repeat_interleave.Tensor"
        if name in self.INDEXING:
            waits = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        assert not waits, f"{func} makes the host wait"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(monkeypatch) -> Iterator[None]:
    """`NoWaiting`, and the ways to a tensor's values that pass it by."""

    def refused(*_):
        raise AssertionError("makes the host wait")

    with monkeypatch.context() as patched, NoWaiting():
        for name in ("tolist", "numpy", "__array__"):
            patched.setattr(torch.Tensor, name, refused)
        patched.setattr("modules.stop.dynamics.surely_whole", lambda frame_mask: False)  # as on a GPU
        yield


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: np.asarray(x),
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put((x > 0,), torch.zeros(())),
        lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64)),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
        lambda x: (x * x.detach().requires_grad_()).sum().backward(torch.tensor(1.0)),
    ],
)
def test_waiting_is_noticed(monkeypatch, ask):
    x = torch.ones(3)
    ask(x)
    with no_waiting(monkeypatch), pytest.raises(AssertionError, match="makes the host wait"):
        ask(x)


@pytest.mark.parametrize(("name", "settings"), [*every_switch(), *IN_OTHER_WAYS], ids=named)
def test_no_step_makes_the_host_wait(name, settings, tmp_path, monkeypatch):
    """By the operators of a step on the CPU, from the copy of the batch to the outcome; not the first step, which makes
    what stays."""
    run = one_training(name, torch.device("cpu"), tmp_path, **{"precision": "fp32"} | settings)
    batches = [one_batch(seed) for seed in range(3)]
    run.take_step(batches[0])
    with no_waiting(monkeypatch):
        outcomes = [run.advance(batch) for batch in batches[1:]]
    run.outcomes += outcomes
    run.settle()
    assert run.step == 3
    assert np.isfinite(run.values["loss"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "settings"), [*every_switch(), *IN_OTHER_WAYS], ids=named)
def test_no_step_makes_the_host_wait_for_a_gpu(name, settings, tmp_path):
    run = one_training(name, torch.device("cuda"), tmp_path, **{"precision": "fp32"} | settings)
    batches = [{key: tensor.pin_memory() for key, tensor in one_batch(seed).items()} for seed in range(4)]
    run.take_step(batches[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            run.take_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(run.outcomes) == 1
    run.settle()
    assert run.step == 4
    assert np.isfinite(run.values["loss"])


def steps_of(name: str, folder: Path, **settings: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Loss and gradient norm of three steps, with clips of other lengths in each, and the last one's gradients."""
    torch.manual_seed(0)
    run, values = one_training(name, torch.device("cpu"), folder, **settings), []
    with torch.no_grad():  # prompts that start at zero would hide the gradients of what they are multiplied with
        for parameter in run.parameters.values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    for seed in range(3):
        batch = one_batch(seed)
        batch["frame_mask"] = torch.arange(4) < torch.tensor([4, 1 + seed, 4 - seed, 3])[:, None]
        run.take_step(batch)
        values.append(run.values)
        run.method.eval()
        with torch.no_grad():  # as after an epoch
            run.method.encode_video(torch.rand(1 + seed, 4, 3, 32, 32), torch.ones(1 + seed, 4))
            run.method.encode_text(batch["token_ids"][: 1 + seed])
        run.method.train()
    return values, {name: parameter.grad for name, parameter in run.parameters.items()}


def assert_compiled_is_eager(monkeypatch, name: str, folder: Path, settings: dict[str, Any], graphs: int) -> None:
    """Without dropout; also that it is so many graphs from first to last, without a break."""
    monkeypatch.setattr("engine.train.compiler_error", lambda device: None)  # which would be one graph more
    options = {"prompt_dropout": 0.0} if "stop" in name else {}
    settings = {"precision": "fp32", **settings}
    values, gradients = steps_of(name, folder, **settings, options=dict(options))
    torch._dynamo.reset()
    counters.clear()
    compiled_values, compiled_gradients = steps_of(name, folder, **settings, options=dict(options), compile=True)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
    assert compiled_gradients.keys() == gradients.keys()
    for ours, theirs in zip(compiled_values, values, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for tensor, gradient in gradients.items():
        if gradient is None:  # the scorer of stop_released
            assert compiled_gradients[tensor] is None
        else:  # some of stop_released's are zero but for rounding
            torch.testing.assert_close(compiled_gradients[tensor], gradient, rtol=1e-4, atol=1e-6, msg=tensor)


COMPILED: list[Any] = [
    *(pytest.param(name, {}, 1, marks=[pytest.mark.slow] * (name != "stop")) for name in ALL_METHODS),
    pytest.param(
        "stop", {"gradient_accumulation_steps": 2, "activation_checkpointing": True}, 2, marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("name", "settings", "graphs"), COMPILED, ids=named)
def test_compiled_steps_are_the_eager_ones(name, settings, graphs, tmp_path, monkeypatch):
    """Graphs that run on torch's own kernels."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    assert_compiled_is_eager(monkeypatch, name, tmp_path, settings, graphs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings", "graphs"), COMPILED, ids=named)
def test_compiled_steps_with_generated_kernels(name, settings, graphs, tmp_path, monkeypatch):
    assert_compiled_is_eager(monkeypatch, name, tmp_path, settings, graphs)


@pytest.mark.slow
def test_a_run_may_go_on_compiled(small_data, tmp_path, monkeypatch):
    """With generated kernels: the same weights under the same names, from a point that was written without."""
    flags = ["--method", "vpt", "--lr", "1e-3"]
    assert main(training(small_data, tmp_path / "whole", *flags)) == 0
    with monkeypatch.context() as patched:
        interrupt_after(patched, 3)
        assert main(training(small_data, tmp_path / "cut", *flags)) == EXIT_INTERRUPTED
    assert main(training(small_data, tmp_path / "cut", *flags, "--resume", "auto", "--compile")) == 0
    assert "resumed after step 3 of 10" in (tmp_path / "cut" / "log.txt").read_text()
    assert_same_weights(tmp_path / "cut", tmp_path / "whole", atol=1e-5, rtol=0)


@pytest.mark.slow
def test_compiled_processes_change_nothing(small_data, tmp_path):
    """Under DistributedDataParallel, in parts and with blocks recomputed."""
    flags = [*METHODS["stop"], "--epochs", "1", "--prompt_depth", "1", "--activation_checkpointing"]
    assert main(training(small_data, tmp_path / "one", *flags)) == 0
    for parts in (1, 2):
        folder = tmp_path / f"two, parts {parts}"
        more = ["--gradient_accumulation_steps", str(parts), "--compile"]
        subprocess.run(launch(2, training(small_data, folder, *flags, *more)), check=True, timeout=900)
        assert_same_weights(folder, tmp_path / "one", atol=1e-5, rtol=0)


def test_without_a_compiler_one_sentence_says_so(small_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no_such_compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    assert main(training(small_data, tmp_path / "run", *METHODS["clip4clip"], "--compile")) == 2
    written = capsys.readouterr().err
    assert "Traceback" not in written
    last = written.strip().splitlines()[-1]
    assert last.startswith("error: --compile needs a working C++ compiler (g++)")
    assert "no_such_compiler" in last


@pytest.mark.parametrize(("what", "video"), [("--do_train", "video3.mp4"), ("--do_eval", "video12.mp4")])
def test_a_broken_video_on_one_process_stops_all(small_data, tmp_path, capfd, what, video):
    """The other process does not wait for it, and both name the file."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in small_data.videos.iterdir():
        if path.name != video:
            (videos / path.name).symlink_to(path)
    (videos / video).write_bytes(b"this is no video")
    flags = training(small_data, tmp_path / "run", *METHODS["clip4clip"], "--features_path", str(videos))
    run_as_group(2, run, [what, *flags[1:]], 2)
    assert len(re.findall(rf"error: .*{re.escape(video)}", capfd.readouterr().err)) == 2


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def wait_for_step(output: Path, step: int, process: subprocess.Popen) -> None:
    for _ in range(2000):
        assert process.poll() is None, "the run ended before it could be killed"
        if (output / "metrics.jsonl").is_file() and f'"step": {step}, "kind": "train"' in (
            output / "metrics.jsonl"
        ).read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"step {step} never came")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
@pytest.mark.parametrize("restarts", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_one_process_is_killed(small_data, tmp_path, restarts):
    """torchrun ends the job, or starts it again and it goes on from its resume point; it never hangs."""
    more = [*METHODS["clip4clip"], "--save_every", "1", "--resume", "auto", "--epochs", "20"]
    flags = training(small_data, tmp_path / "killed", *more)
    command = launch(2, flags, f"--max_restarts={restarts}")
    with open(tmp_path / "output.txt", "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"})
    wait_for_step(tmp_path / "killed", 6, process)
    os.kill(children_of(process.pid)[-1], signal.SIGKILL)
    code = process.wait(timeout=300)
    written = (tmp_path / "output.txt").read_text()
    if not restarts:
        assert code != 0
        assert "SIGKILL" in written
        return
    assert code == 0, written[-3000:]
    assert "resumed after step" in (tmp_path / "killed" / "log.txt").read_text()
    steps = [line["step"] for line in lines_of(tmp_path / "killed", "train")]
    assert steps == list(range(1, 101))


@pytest.mark.slow
def test_killed_at_twenty_random_moments(small_data, tmp_path):
    """SIGKILL anywhere, also during a save: it always goes on, and ends with the undisturbed run's numbers."""
    more = ["--method", "stop", "--lr", "1e-3", "--frame_sampling", "segment", "--epochs", "12", "--save_every", "1"]
    assert main(training(small_data, tmp_path / "whole", *more)) == 0
    flags = training(small_data, tmp_path / "killed", *more, "--resume", "auto")
    command = [sys.executable, str(ROOT / "main_task_retrieval.py"), *flags]
    rng = np.random.default_rng(0)
    points = tmp_path / "killed" / "resume"
    kills = 0
    while kills < 20:
        with open(tmp_path / "output.txt", "a") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"})
        before = {path.name for path in points.glob("step_*.pt")}
        while process.poll() is None and {path.name for path in points.glob("step_*.pt")} == before:
            time.sleep(0.01)  # until the first new point: every try gets further
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        for path in points.glob("step_*.pt"):
            read_resume_point(path)  # raises if one is damaged
    if kills == 20:
        assert subprocess.run(command, check=False).returncode == 0
    assert kills >= 10
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert lines_of(tmp_path / "killed", "train") == lines_of(tmp_path / "whole", "train")
    assert lines_of(tmp_path / "killed", "test")[-1] == lines_of(tmp_path / "whole", "test")[-1]
