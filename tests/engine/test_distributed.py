"""The gathers of two real gloo processes give the results of one process."""

import os
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import gather, gather_by_id, gather_with_gradient, process_group
from engine.precision import autocast_for
from engine.tasks.contrastive import ContrastiveStep
from modules.losses import build_loss, symmetric_info_nce
from modules.methods import build_method
from tests.processes import run_as_group
from tests.tiny import tiny_clip

VIDEO_INDEX = torch.tensor([3, 5, 3, 7])  # one of the videos is on both processes


def global_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 5, generator=generator), torch.randn(8, 5, generator=generator)


def step_gradient(
    rank: int, world_size: int, gather_gradient: str, positives: bool, loss: str = "symmetric_info_nce"
) -> torch.Tensor:
    """Return the gradient on this process after one training step of a small method on four clips in all; the loss's
    own parameters come last."""
    torch.manual_seed(0)
    method = build_method("vpt", tiny_clip(), text_prompt_length=2)
    autocast = autocast_for("fp32", torch.device("cpu"))
    step: torch.nn.Module = ContrastiveStep(method, autocast, gather_gradient, build_loss(loss, method.clip), positives)
    if world_size > 1:
        step = DistributedDataParallel(step)
    videos, frame_mask = torch.randint(256, (4, 3, 3, 32, 32), dtype=torch.uint8), torch.ones(4, 3, dtype=torch.bool)
    tokens = torch.randint(300, 49000, (4, 8))
    tokens[:, -1] = 49407
    inputs = (videos, frame_mask, tokens, *([VIDEO_INDEX] if positives else []))
    step(*(tensor.chunk(world_size)[rank] for tensor in inputs)).backward()
    inner = step.module if isinstance(step, DistributedDataParallel) else step
    return torch.cat([parameter.grad.flatten() for _, parameter in inner.trainable_parameters()])


def worker(folder: Path) -> None:
    with process_group() as process:
        rank, world_size = process.rank, process.world_size
        assert (rank, world_size) == (int(os.environ["RANK"]), 2)
        assert process.is_main == (rank == 0)
        text, video = (rows.chunk(world_size)[rank].clone().requires_grad_() for rows in global_pairs())
        loss = symmetric_info_nce(gather_with_gradient(text) @ gather_with_gradient(video).T)
        loss.backward()
        assert process.on_main(lambda: 5) == (5 if rank == 0 else None)
        with pytest.raises(ValueError, match="invalid literal"):  # the main process's error is raised on both
            process.on_main(lambda: int("x"))
        # Uneven shares: process 0 has items 1, 3, 4 and process 1 the others.
        ids = torch.tensor([[4, 1], [0]][rank]), torch.tensor([[3], [2, 5]][rank])
        features = gather_by_id([id_[:, None] * torch.tensor([1.0, 10.0]) for id_ in ids], list(ids), 6)
        with pytest.raises(RuntimeError, match="came twice or not at all"):
            gather_by_id([torch.zeros(1, 2)], [torch.tensor([0])], 2)
        # The second process has nothing to evaluate.
        some = ([torch.ones(2, 2)], [torch.tensor([1, 0])]) if rank == 0 else ([], [])
        assert gather_by_id(*some, 2).shape == (2, 2)
        assert torch.equal(gather(VIDEO_INDEX.chunk(world_size)[rank]), VIDEO_INDEX)
        cases = [(gradient, positives) for gradient in ("sum", "own") for positives in (False, True)]
        steps = {case: step_gradient(rank, world_size, *case) for case in cases}
        steps |= {
            ("sigmoid", positives): step_gradient(rank, world_size, "sum", positives, "sigmoid")
            for positives in (False, True)
        }
        steps["as STAN's release"] = step_gradient(rank, world_size, "own", False, "summed_info_nce")
        torch.save(
            {"loss": loss.detach(), "text": text.grad, "video": video.grad, "features": features, "steps": steps},
            folder / f"{rank}.pt",
        )


def test_two_processes_equal_one(tmp_path):
    run_as_group(2, worker, tmp_path)
    text, video = (rows.requires_grad_() for rows in global_pairs())
    loss = symmetric_info_nce(text @ video.T)
    loss.backward()
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for result in results:
        torch.testing.assert_close(result["loss"], loss.detach())
        torch.testing.assert_close(result["features"], torch.arange(6.0)[:, None] * torch.tensor([1.0, 10.0]))
    for name, whole in (("text", text), ("video", video)):
        # Each process has the gradient of the sum over processes; DDP's mean turns it into that of one process.
        torch.testing.assert_close(torch.cat([result[name] for result in results]) / 2, whole.grad)
    alone = {positives: step_gradient(0, 1, "sum", positives) for positives in (False, True)}
    assert (alone[True] - alone[False]).abs().max() > 0.01 * alone[False].abs().max()
    for result in results:
        for positives, expected in alone.items():
            torch.testing.assert_close(result["steps"]["sum", positives], expected, atol=1e-6, rtol=1e-4)
            # CLIP4Clip's gather loses the other process's half, and nothing else.
            assert torch.equal(2 * result["steps"]["own", positives], result["steps"]["sum", positives])
        for positives in (False, True):
            expected = step_gradient(0, 1, "sum", positives, "sigmoid")
            assert expected[-2:].abs().min() > 0  # of scale and bias
            torch.testing.assert_close(result["steps"]["sigmoid", positives], expected, atol=1e-6, rtol=1e-4)
        # 1/W of the gradient of twice the loss.
        assert torch.equal(result["steps"]["as STAN's release"], result["steps"]["sum", False])


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with process_group() as process:
        assert process.is_main
        process.barrier()
        rows = torch.randn(3, 2)
        assert gather_with_gradient(rows) is rows
        assert gather(rows) is rows
        assert gather_by_id([rows], [torch.tensor([2, 0, 1])], 3)[0].equal(rows[1])
