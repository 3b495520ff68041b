"""STAN in plain loops over frames, locations and heads, for one clip, straight from its equations."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.attention import Attention
from modules.methods.stan import STAN
from modules.stan.temporal import TemporalAttention


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * layer.weight + layer.bias


def attention(layer: Attention, tokens: list[Tensor]) -> list[Tensor]:
    """Return the output of every token, each `[D]`."""
    width = layer.width // layer.heads
    projected = [layer.in_proj_weight @ token + layer.in_proj_bias for token in tokens]
    outputs = []
    for own in projected:
        heads = []
        for head in range(layer.heads):
            part = slice(head * width, (head + 1) * width)
            queries, keys, values = zip(*(one.chunk(3) for one in [own, *projected]), strict=True)
            scores = torch.stack([queries[0][part] @ key[part] / width**0.5 for key in keys[1:]])
            shares = scores.exp() / scores.exp().sum()
            heads.append(sum(share * value[part] for share, value in zip(shares, values[1:], strict=True)))
        outputs.append(layer.out_proj.weight @ torch.cat(heads) + layer.out_proj.bias)
    return outputs


def mlp(layer: nn.Module, x: Tensor) -> Tensor:
    hidden = layer.c_fc(x)
    return layer.c_proj(hidden * torch.sigmoid(1.702 * hidden))


def frames_of_a_clip(method: STAN, video: Tensor, even: bool = False) -> Tensor:
    """Return u_t of one clip without padding, `[T,3,H,W]` -> `[T,E]`, in evaluation.

    With `even`, later levels average the class tokens of the frames 0, 2, 4 ... alone.
    """
    visual, branch = method.clip.visual, method.branch
    frames, levels = len(video), len(branch.levels)
    outputs = []
    x = visual.embed(video)
    for block in visual.blocks:
        x = block(x)
        outputs.append(x)
    v = outputs[-levels:]  # [T, 1 + L, D] each
    patches = v[0].shape[1] - 1
    for k, level in enumerate(branch.levels):
        if k == 0:
            c = sum(v[0][t, 0] for t in range(frames)) / frames
            positions = branch.positions
            if positions is None:
                c = 0.5 * (c + visual.class_embedding + visual.positional_embedding[0])
                positions = visual.positional_embedding[1:]
            h = [
                [v[0][t, 1 + place] + positions[place] + branch.time.weight[t] for place in range(patches)]
                for t in range(frames)
            ]
        else:
            matrix = torch.eye(len(c)) if level.projection is None else level.projection.weight
            counted = range(0, frames, 2) if even else range(frames)
            c = c + sum(matrix @ v[k][t, 0] for t in counted) / len(counted)
            h = [[h[t][place] + matrix @ v[k][t, 1 + place] for place in range(patches)] for t in range(frames)]
        temporal = attend_over_frames if isinstance(level.temporal, TemporalAttention) else convolve_over_frames
        for place in range(patches):
            related = temporal(level.temporal, [h[t][place] for t in range(frames)])
            for t in range(frames):
                h[t][place] = related[t]
        block = level.spatial
        a = [attention(block.attn, [norm(block.ln_1, token) for token in (c, *h[t])]) for t in range(frames)]
        c = c + sum(a[t][0] for t in range(frames)) / frames
        c = c + mlp(block.mlp, norm(block.ln_2, c))
        h = [[h[t][place] + a[t][1 + place] for place in range(patches)] for t in range(frames)]
        h = [[token + mlp(block.mlp, norm(block.ln_2, token)) for token in frame] for frame in h]
    return torch.stack([norm(visual.ln_post, v[-1][t, 0] + c) @ visual.proj for t in range(frames)])


def attend_over_frames(layer: nn.Module, column: list[Tensor]) -> list[Tensor]:
    a = attention(layer.attn, [norm(layer.norm, token) for token in column])
    return [token + layer.fc.weight @ own + layer.fc.bias for token, own in zip(column, a, strict=True)]


def convolve_over_frames(layer: nn.Module, column: list[Tensor]) -> list[Tensor]:
    lowered = [layer.down.weight @ token + layer.down.bias for token in column]
    kernel = layer.conv.weight[..., 0, 0]  # [out, in, 3]
    related = []
    for t, token in enumerate(column):
        total = layer.conv.bias.clone()
        for tap in range(3):
            if 0 <= t + tap - 1 < len(column):
                total = total + kernel[:, :, tap] @ lowered[t + tap - 1]
        related.append(token + layer.up.weight @ F.gelu(total) + layer.up.bias)
    return related
