"""The engine also runs a method whose rows are several tensors, because it compares words with frames."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import process_group
from engine.evaluate import Encoder, evaluating
from engine.precision import autocast_for
from engine.tasks.base import Part
from engine.tasks.contrastive import ContrastiveStep
from engine.tasks.retrieval_metrics import in_tiles, retrieval_metrics
from modules.methods import Method
from modules.rows import Rows, join, take, to_float
from tests.processes import run_as_group
from tests.tiny import tiny_batch, tiny_clip
from tests.training_runs import ROOT

CPU = torch.device("cpu")


class Tokens(NamedTuple):
    """Embeddings of words or frames, and a mask of the real ones."""

    tokens: Tensor  # [N,S,E]
    real: Tensor  # bool [N,S]


class WordsAndFrames(Method):
    """Scores by the best frame of each word, averaged over words, like FILIP and Mug-STAN."""

    is_dot_product = False

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tokens:
        frames = self.clip.visual(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        return Tokens(torch.nn.functional.normalize(frames, dim=-1), frame_mask.bool())

    def encode_text(self, token_ids: Tensor) -> Tokens:
        x = self.clip.text.embed(token_ids)
        for block in self.clip.text.blocks:
            x = block(x, causal=True)
        words = self.clip.text.ln_final(x) @ self.clip.text.text_projection
        return Tokens(torch.nn.functional.normalize(words, dim=-1), token_ids > 0)

    def similarity(self, text: Tokens, video: Tokens) -> Tensor:
        return words_with_frames(text, video) * self.clip.logit_scale.exp()


def words_with_frames(text: Tokens, video: Tokens) -> Tensor:
    scores = torch.einsum("nle,mte->nmlt", text.tokens, video.tokens)
    best = scores.masked_fill(~video.real[None, :, None], -torch.inf).amax(dim=-1)  # [n,m,L]
    return (best * text.real[:, None]).sum(dim=-1) / text.real.sum(dim=-1)[:, None]


class Numbered(torch.utils.data.Dataset):
    """A dataset of given tensors."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int) -> dict:
        return {name: tensor[index] for name, tensor in self.tensors.items()} | {"index": index}


def data() -> tuple[Tensor, Tensor, Tensor]:
    video, frame_mask, token_ids = tiny_batch(seed=3, batch=6)
    frame_mask[4, 1:] = False
    return (video.clamp(0, 1) * 255).to(torch.uint8), frame_mask, token_ids


def save_rows_and_gradients(folder: Path) -> None:
    """Encode in shards, and take a training step in one and in two parts, on this process of a group."""
    video, frame_mask, token_ids = data()
    with process_group() as process:
        rank, world_size = process.rank, process.world_size
        method = WordsAndFrames(tiny_clip())
        encoder = Encoder(process, autocast_for("fp32", CPU), 2, 0, 2)
        with evaluating(method):
            clips = encoder(
                Numbered(video=video, frame_mask=frame_mask),
                lambda batch: method.encode_video(batch["video"].float() / 255, batch["frame_mask"]),
                "videos",
            )
            texts = encoder(
                Numbered(token_ids=token_ids), lambda batch: method.encode_text(batch["token_ids"]), "texts"
            )
        step = ContrastiveStep(method, autocast_for("fp32", CPU))
        model = DistributedDataParallel(step, find_unused_parameters=True) if world_size > 1 else step
        share = tuple(tensor.chunk(world_size)[rank] for tensor in (video, frame_mask, token_ids))
        gradients = []
        for pieces in ([Part(share)], step.in_parts(share, 2)[1]):
            method.zero_grad()
            for piece in pieces:
                model(*piece.inputs).backward()
            gradients.append({name: p.grad for name, p in method.named_parameters() if p.grad is not None})
    torch.save({"rows": (*texts, *clips), "gradients": gradients}, folder / f"{world_size}_{rank}.pt")


def test_one_two_and_three_processes(tmp_path):
    """They give the same rows, masks included, and the same gradients, also in parts."""
    for world_size in (1, 2, 3):
        run_as_group(world_size, save_rows_and_gradients, tmp_path)
    alone = torch.load(tmp_path / "1_0.pt")
    expected = alone["gradients"][0]
    for path in tmp_path.glob("*.pt"):
        found = torch.load(path)
        for ours, theirs in zip(found["rows"], alone["rows"], strict=True):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs)
        for gradients in found["gradients"]:
            for name, gradient in expected.items():
                torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4, msg=f"{path.name}, {name}")


def features(n: int, tokens: int, seed: int) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(-3, 4, (n, tokens, 8), generator=generator).float()  # whole numbers: sums are exact
    real = torch.rand(n, tokens, generator=generator) < 0.7
    real[:, 0] = True
    return Tokens(made, real)


@pytest.mark.parametrize(("block", "pairs"), [(1, 1), (3, 7), (7, 64), (40, 10**6)])
def test_blocks_of_any_size_give_the_same_ranks(block, pairs):
    text, video = features(31, 5, 0), features(17, 4, 1)
    owner = np.arange(31) % 17

    def similarity(captions: np.ndarray, videos: np.ndarray) -> Tensor:
        return words_with_frames(take(text, captions), take(video, videos))

    expected = retrieval_metrics(similarity, owner, 17, block=31)
    sizes = []

    def noted(captions: np.ndarray, videos: np.ndarray) -> Tensor:
        sizes.append(len(captions) * len(videos))
        return similarity(captions, videos)

    assert retrieval_metrics(in_tiles(noted, pairs), owner, 17, block=block) == expected
    assert max(sizes) <= pairs


def test_each_kind_of_rows_is_joined_taken_and_made_float():
    rows: Rows = join([features(2, 3, 0), features(3, 3, 1)])
    assert isinstance(rows, Tokens)
    assert rows.tokens.shape == (5, 3, 8)
    some = to_float(take(Tokens(rows.tokens.bfloat16(), rows.real), np.array([4, 0])))
    assert some.tokens.dtype == torch.float32
    assert some.real.dtype == torch.bool
    assert torch.equal(some.real, rows.real[[4, 0]])
    with pytest.raises(ValueError, match="pad them to one length"):
        join([features(2, 3, 0), features(2, 4, 0)])


LARGE = """
import resource
import numpy as np, torch
from tests.engine.tasks.test_token_level import features, words_with_frames
from engine.tasks.retrieval_metrics import in_tiles, retrieval_metrics
from modules.rows import take

text, video = features(50_000, 2, 0), features(10_000, 2, 1)
similarity = lambda c, v: words_with_frames(take(text, c), take(video, v))
owner = np.arange(50_000) % 10_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
retrieval_metrics(in_tiles(similarity), owner, 10_000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_fifty_thousand_captions_and_ten_thousand_videos_need_little_memory():
    """Check the memory; the scores of all pairs would take 2 GB, and their words and frames four times that."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LARGE], capture_output=True, text=True, env=environment, check=True, cwd=ROOT
    )
    assert float(done.stdout) < 400  # MiB
