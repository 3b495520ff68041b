"""The contests of `benchmarks.peers` in towers, training steps and metrics.

Shapes: B clips, T frames, N captions, V videos.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import random_batch
from benchmarks.peer_contests import Contest, Peer, Sizes, Work
from benchmarks.training_step import TrainingStep
from dataloaders.transforms import normalise
from engine.tasks.retrieval_metrics import RECALL_AT, retrieval_metrics
from modules.clip import CLIP, CLIPArchitecture
from modules.methods import build_method
from modules.rows import take
from modules.similarity import masked_mean, scaled_product, unit


def towers(sizes: Sizes, folder: Path) -> Iterator[Contest]:
    """Run both towers forward with random weights in fp32."""
    shape = sizes.architecture
    clip = CLIP(shape).eval()
    video, _, _ = random_batch(shape, sizes.batch, sizes.frames, 3, torch.device("cpu"))
    pixels = normalise(video).flatten(0, 1)
    token_ids = random_batch(shape, 16, 1, shape.context_length, torch.device("cpu"))[2]

    def peers(side: str, rows: Tensor) -> dict[str, Peer]:
        def forward(model: Callable[[], Any]) -> Callable[[], Work]:
            def prepare() -> Work:
                made = model()
                return lambda: torch.no_grad()(made)(rows)

            return prepare

        return {
            "open_clip": Peer("open_clip", forward(lambda: getattr(_open_clip(shape).eval(), f"encode_{side}"))),
            "Hugging Face, sdpa": Peer("transformers", forward(lambda: _hugging_face(shape, side))),
            "nn.MultiheadAttention": Peer("torch", forward(lambda: _PlainTower(shape, side).eval())),
        }

    with torch.no_grad():
        clip.visual(pixels[:1])  # joins the weights that evaluation joins once
    images = f"{len(pixels)} images"
    yield Contest("towers", images, lambda: torch.no_grad()(clip.visual)(pixels), peers("image", pixels))
    texts = f"{len(token_ids)} captions of {shape.context_length} tokens"
    yield Contest("towers", texts, lambda: torch.no_grad()(clip.text)(token_ids), peers("text", token_ids))


def _open_clip(shape: CLIPArchitecture) -> Any:
    import open_clip

    vision = open_clip.CLIPVisionCfg(
        layers=shape.vision_layers,
        width=shape.vision_width,
        head_width=shape.vision_width // shape.vision_heads,
        patch_size=shape.patch_size,
        image_size=shape.image_size,
    )
    text = open_clip.CLIPTextCfg(
        context_length=shape.context_length,
        vocab_size=shape.vocab_size,
        width=shape.text_width,
        heads=shape.text_heads,
        layers=shape.text_layers,
    )
    return open_clip.CLIP(shape.embed_dim, vision, text, quick_gelu=shape.activation == "quick_gelu")


def _hugging_face(shape: CLIPArchitecture, side: str) -> Any:
    import transformers

    common: dict[str, Any] = {
        "projection_dim": shape.embed_dim,
        "hidden_act": shape.activation,
        "attn_implementation": "sdpa",
    }
    if side == "image":
        vision = transformers.CLIPVisionConfig(
            hidden_size=shape.vision_width, intermediate_size=4 * shape.vision_width,
            num_hidden_layers=shape.vision_layers, num_attention_heads=shape.vision_heads,
            image_size=shape.image_size, patch_size=shape.patch_size, **common,
        )  # fmt: skip
        return transformers.CLIPVisionModelWithProjection(vision).eval()
    text = transformers.CLIPTextConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.text_width, intermediate_size=4 * shape.text_width,
        num_hidden_layers=shape.text_layers, num_attention_heads=shape.text_heads,
        max_position_embeddings=shape.context_length, eos_token_id=shape.vocab_size - 1,
        bos_token_id=shape.vocab_size - 2, **common,
    )  # fmt: skip
    return transformers.CLIPTextModelWithProjection(text).eval()


class _PlainTower(nn.Module):
    """A tower of torch's own transformer layers, which attend with `nn.MultiheadAttention`."""

    def __init__(self, shape: CLIPArchitecture, side: str) -> None:
        super().__init__()
        self.is_text = side == "text"
        width = shape.text_width if self.is_text else shape.vision_width
        heads, layers = (
            (shape.text_heads, shape.text_layers) if self.is_text else (shape.vision_heads, shape.vision_layers)
        )
        length = shape.context_length if self.is_text else 1 + shape.grid**2
        self.embedding = (
            nn.Embedding(shape.vocab_size, width)
            if self.is_text
            else nn.Conv2d(3, width, shape.patch_size, shape.patch_size, bias=False)
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(length, width) * 0.01)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, _quick_gelu, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.project = nn.Linear(width, shape.embed_dim, bias=False)
        self.mask = nn.Transformer.generate_square_subsequent_mask(length) if self.is_text else None

    def forward(self, rows: Tensor) -> Tensor:
        tokens = self.embedding(rows)
        if not self.is_text:
            tokens = tokens.flatten(2).transpose(1, 2)
            tokens = torch.cat([self.class_token.expand(len(rows), -1, -1), tokens], dim=1)
        tokens = tokens + self.positions
        tokens = tokens if self.is_text else self.ln_pre(tokens)
        tokens = self.layers(tokens, mask=self.mask, is_causal=self.is_text)
        first = tokens[torch.arange(len(rows)), rows.argmax(dim=-1)] if self.is_text else tokens[:, 0]
        return self.project(self.ln_post(first))


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def steps(sizes: Sizes, folder: Path) -> Iterator[Contest]:
    """Take CLIP4Clip's training step, all weights trained, in fp32."""
    shape = sizes.architecture
    batch = random_batch(shape, sizes.batch, sizes.frames, shape.context_length, torch.device("cpu"))
    ours = TrainingStep(build_method("clip4clip", CLIP(shape)).train(), batch, "fp32")
    peers = {"a step from open_clip's towers and InfoNCE": Peer("open_clip", partial(_open_clip_step, shape, batch))}
    yield Contest("training step", f"CLIP4Clip, {sizes.batch} clips of {sizes.frames} frames", ours.take, peers)


def _open_clip_step(shape: CLIPArchitecture, batch: tuple[Tensor, Tensor, Tensor]) -> Work:
    model = _open_clip(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, weight_decay=0.2)
    video, frame_mask, token_ids = batch
    target = torch.arange(len(video))

    def step() -> None:
        optimizer.zero_grad()
        frames = model.encode_image(normalise(video).flatten(0, 1)).unflatten(0, video.shape[:2])
        clips = nn.functional.normalize(masked_mean(frames, frame_mask), dim=-1)
        texts = model.encode_text(token_ids, normalize=True)
        logits = model.logit_scale.exp() * texts @ clips.T
        loss = nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)
        (loss / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


# Metrics


def metrics(sizes: Sizes, folder: Path) -> Iterator[Contest]:
    """Rank in both directions, from features [N,512] and [V,512] of unit length; torchmetrics ranks in one."""
    generator = torch.Generator().manual_seed(0)
    for n, v in zip(sizes.captions, sizes.videos, strict=True):
        videos = unit(torch.randn(v, 512, generator=generator))
        owner = np.sort(np.arange(n) % v)
        captions = unit(videos[owner] + 0.3 * torch.randn(n, 512, generator=generator))
        ours = partial(_our_metrics, captions, videos, owner)
        peers = {
            "numpy, double argsort": Peer("numpy", partial(partial, _argsort, captions, videos, owner)),
            "torchmetrics, text to video": Peer("torchmetrics", partial(_torchmetrics, captions, videos, owner)),
        }
        yield Contest("metrics", f"{n} captions x {v} videos", ours, peers)


@torch.no_grad()
def _our_metrics(captions: Tensor, videos: Tensor, owner: np.ndarray) -> Any:
    scale = torch.zeros(())

    def similarity(c: np.ndarray, v: np.ndarray) -> Tensor:
        text, video = take(captions, c), take(videos, v)
        assert isinstance(text, Tensor)
        assert isinstance(video, Tensor)
        return scaled_product(text, video, scale)

    return retrieval_metrics(similarity, owner, len(videos))


def _argsort(captions: Tensor, videos: Tensor, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = -(captions @ videos.T).numpy()
    ranks = scores.argsort(axis=1).argsort(axis=1)[np.arange(len(owner)), owner]
    first = np.flatnonzero(np.diff(owner, prepend=-1))  # the captions of a video stand together
    best = np.minimum.reduceat(scores, first, axis=0).T
    return ranks, best.argsort(axis=1).argsort(axis=1).diagonal()


def _torchmetrics(captions: Tensor, videos: Tensor, owner: np.ndarray) -> Work:
    from torchmetrics.retrieval import RetrievalRecall

    def measure() -> list[Tensor]:
        scores = captions @ videos.T
        query = torch.arange(len(owner)).repeat_interleave(len(videos))
        target = torch.from_numpy(owner)[:, None] == torch.arange(len(videos))
        recalls = [RetrievalRecall(top_k=k) for k in RECALL_AT if k <= len(videos)]
        return [recall(scores.flatten(), target.flatten(), indexes=query) for recall in recalls]

    return measure
