"""UniPT: Universal Parallel Tuning (Diao et al., CVPR 2024, arXiv 2308.14316; github.com/Paranioar/UniPT at commit
3fa457d), on CLIP4Clip.

A side network reads what all blocks of a frozen tower give, and corrects the tower's embedding. No gradient goes
through CLIP, which a training step only runs forward.

Shapes: B clips, T frames, N rows (frames or captions), L tokens of a row, I taps, D width, E joint embedding.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.clip import CLIP, Block
from modules.methods.base import DeadParameters, Method
from modules.similarity import masked_mean

# Number 0 of each pair is a ReLU; the layers `keys.i` are `downsample_layers.i.1` there.
RELEASED_NAMES = {"query": "downsample_layer.1", "up": "upsample_layer.1", "gate": "gate_layer"}


class SideNetwork(nn.Module):
    """The side network of one tower. It reads taps H_0..H_{I-1}: the input of the first block and the output of each,
    without a final LayerNorm.

    It has torch's default initial values, so it does not start at zero.
    """

    def __init__(self, taps: int, width: int, embed: int) -> None:
        super().__init__()
        self.keys = nn.ModuleList(nn.Linear(width, embed) for _ in range(taps))
        self.query = nn.Linear(embed, embed)
        self.gate = nn.Linear(embed, 1)
        self.up = nn.Linear(embed, embed)

    def forward(self, taps: Sequence[Tensor], z: Tensor, places: Tensor, real: Tensor) -> Tensor:
        """Correct embeddings.

        Args:
            taps: relu(H_i), each [N, L, D].
            z: the tower's embeddings, [N, E], not of unit length.
            places: the token that the tower reads, class token or END; int64 [N].
            real: the tokens that count; bool [N or 1, L].

        Returns:
            [N, E].
        """
        q = self.query(z.relu())  # [N, E]
        real = real.expand(len(z), -1).to(q.dtype)
        average = real / real.sum(dim=1, keepdim=True).clamp(min=1)
        at_place = (torch.arange(real.shape[1], device=q.device) == places.unsqueeze(1)).to(q.dtype)
        means, features = [], []
        for layer, tap in zip(self.keys, taps, strict=True):
            # K = tap W^T + b is never computed: all that is read of it is linear, so W follows the sums over tokens.
            assert isinstance(layer, nn.Linear)
            of_q = tap @ (q @ layer.weight).unsqueeze(2)  # [N, L, 1]
            scores = of_q.squeeze(2) + (q @ layer.bias).unsqueeze(1)  # K q
            weights = F.relu(scores * real)
            weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
            shares = torch.stack([average, weights + at_place], dim=1)  # [N, 2, L], of each sum over tokens
            sums = F.linear(shares @ tap, layer.weight) + shares.sum(dim=2, keepdim=True) * layer.bias
            mean, feature = sums.unbind(dim=1)
            means.append(mean)
            features.append(feature)  # w K + K[place]
        shares = self.gate(q.unsqueeze(1) * torch.stack(means, dim=1)).softmax(dim=1)  # γ, [N, I, 1]
        return z + self.up((shares * torch.stack(features, dim=1)).sum(dim=1).relu())


class UniPT(Method):
    """Both towers are frozen and have a side network each. The video is the mean of its frames' normalised embeddings,
    as in CLIP4Clip."""

    needs = ("class token", "END")

    def __init__(
        self,
        clip: CLIP,
        *,
        text_mask: Annotated[
            Literal["length", "nonzero"],
            "tokens of a text that count: length: up to END; nonzero: all but number 0, as in the release, where "
            "exclamation marks have that number too and so do not count",
        ] = "length",
    ) -> None:
        if text_mask == "nonzero" and clip.text.end_id is not None:
            raise ValueError(
                "--text_mask nonzero is for rows that are padded with zeros, as CLIP's tokenizer alone does: leave out"
            )
        super().__init__(clip)
        clip.requires_grad_(False)
        visual, text, embed = clip.visual, clip.text, clip.architecture.embed_dim
        self.text_mask = text_mask
        self.image_adapter = SideNetwork(1 + len(visual.blocks), visual.width, embed)
        self.text_adapter = SideNetwork(1 + len(text.blocks), text.width, embed)

    def encode_frames(self, video: Tensor) -> Tensor:
        """Embed every frame: `[B,T,3,H,W]` -> `[B,T,E]`, not normalised."""
        visual = self.clip.visual
        with torch.no_grad():
            taps, tokens = _run(visual.blocks, visual.embed(video.flatten(0, 1)), lambda block, x: block(x))
            z = visual.pool(tokens)
        places = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        real = torch.ones(1, tokens.shape[1], dtype=torch.bool, device=z.device)
        return self.image_adapter(taps, z, places, real).unflatten(0, video.shape[:2])

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        return masked_mean(self.encode_frames(video), frame_mask)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        text, ends = self.clip.text, self.clip.text.end_positions(token_ids)
        with torch.no_grad():
            taps, tokens = _run(text.blocks, text.embed(token_ids), lambda block, x: block(x, causal=text.causal))
            z = text.pool(tokens[torch.arange(len(tokens), device=tokens.device), ends])
        if self.text_mask == "nonzero":
            real = token_ids != 0
        else:
            real = torch.arange(token_ids.shape[1], device=token_ids.device) <= ends.unsqueeze(1)
        return self.text_adapter(taps, z, ends, real)

    def dead_parameters(self) -> list[DeadParameters]:
        reason = "it adds the same to all taps of a row, and softmax removes that"
        return [DeadParameters(f"{tower}_adapter.gate.bias", reason) for tower in ("image", "text")]

    def released_name(self, name: str) -> str | None:
        tower, _, part = name.partition(".")
        if tower not in ("image_adapter", "text_adapter"):
            return super().released_name(name)
        layer, _, tensor = part.rpartition(".")
        return f"{tower}.{RELEASED_NAMES.get(layer) or layer.replace('keys.', 'downsample_layers.') + '.1'}.{tensor}"


def _run(
    blocks: Iterable[nn.Module], tokens: Tensor, run: Callable[[Block, Tensor], Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Return relu(H_i) of every tap, and the output of the last block."""
    taps = [tokens.relu()]
    for block in blocks:
        assert isinstance(block, Block)
        tokens = run(block, tokens)
        taps.append(tokens.relu())
    return taps, tokens
