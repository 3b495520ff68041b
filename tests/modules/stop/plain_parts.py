"""The parts of the slow, plain STOP: norms, convolutions, attention and blocks, a token or a head at a time.

Parameters are read from the modules under test; nothing else of theirs is used.

Shapes: T real frames of one clip, G grid side, P = G*G patches in rows, D width, c channels of a bottleneck.
"""

import math

import torch
from torch import Tensor


def normalised(token: Tensor) -> Tensor:
    centred = token - token.sum() / len(token)
    return centred / ((centred**2).sum() / len(token) + 1e-5).sqrt()


def layer_norm(norm: torch.nn.LayerNorm, token: Tensor) -> Tensor:
    return normalised(token) * norm.weight + norm.bias


def softmax(scores: list[Tensor]) -> Tensor:
    powers = (torch.stack(scores) - max(scores)).exp()
    return powers / powers.sum()


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def neighbour(volume: Tensor, grid: int, i: int, row: int, column: int, repeat_ends: bool) -> Tensor:
    """Return a token whose place may lie outside: zero beyond the frame's edges; in time the nearest frame or zero."""
    inside_time = 0 <= i < len(volume)
    if not (0 <= row < grid and 0 <= column < grid) or not (inside_time or repeat_ends):
        return torch.zeros_like(volume[0, 0])
    return volume[min(max(i, 0), len(volume) - 1), row * grid + column]


def dynamics_features(net: torch.nn.Module, volume: Tensor, grid: int, repeat_ends: bool) -> Tensor:
    """Apply N_s or N_t: convolve each channel alone over 3 frames, rows and columns: `[T,P,D]` -> `[T,P,D]`.

    N_s sees tokens. We subtract from its kernels their means over the three frames. Their sum is then zero, so the
    middle frame's token can be subtracted from all three tokens, and no change gives zero without rounding.
    """
    out = torch.zeros_like(volume)
    kernel = net.conv.weight[:, 0]
    if net.sees == "tokens":
        mean = (kernel[:, 0] + kernel[:, 1] + kernel[:, 2]) / 3
        kernel = torch.stack([kernel[:, 0] - mean, kernel[:, 1] - mean, kernel[:, 2] - mean], dim=1)
    for i in range(len(volume)):
        for j in range(grid * grid):
            row, column = divmod(j, grid)
            total = torch.zeros_like(volume[0, 0])
            for di in range(3):
                for dy in range(3):
                    for dx in range(3):
                        token = neighbour(volume, grid, i + di - 1, row + dy - 1, column + dx - 1, repeat_ends)
                        if net.sees == "tokens":
                            token = token - neighbour(volume, grid, i, row + dy - 1, column + dx - 1, repeat_ends)
                        total = total + kernel[:, di, dy, dx] * token
            out[i, j] = total
    return out


def convolve_time(linear: torch.nn.Linear, volume: Tensor) -> Tensor:
    """Apply a 3x1x1 convolution, zero beyond the ends: `[T,P,c]` -> `[T,P,c']`; `weight` has the taps side by side."""
    taps = linear.weight.chunk(3, dim=1)
    out = volume.new_zeros(*volume.shape[:2], len(linear.bias))
    for i in range(len(volume)):
        for j in range(volume.shape[1]):
            out[i, j] = linear.bias
            for di in range(3):
                if 0 <= i + di - 1 < len(volume):
                    out[i, j] += taps[di] @ volume[i + di - 1, j]
    return out


def scaled_by_place(net: torch.nn.Module, volume: Tensor) -> Tensor:
    """Scale channels by where in the clip a frame or gap lies, given as four sines and four cosines: `[T,P,c]`."""
    scaled = []
    for i, tokens in enumerate(volume):
        angles = [k * math.pi * (i + 1) / (len(volume) + 1) for k in (1, 2, 3, 4)]
        code = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=volume.dtype)
        scaled.append(tokens * (1 + net.weight @ code))
    return torch.stack(scaled)


def convolve_space(conv: torch.nn.Conv2d, volume: Tensor, grid: int) -> Tensor:
    """Apply a 1x3x3 convolution: `[T,P,c]` -> `[T,P,c']`, zero beyond the edges."""
    out = torch.zeros_like(volume)
    for i in range(len(volume)):
        for j in range(grid * grid):
            row, column = divmod(j, grid)
            out[i, j] = conv.bias
            for dy in range(3):
                for dx in range(3):
                    out[i, j] += conv.weight[:, :, dy, dx] @ neighbour(
                        volume, grid, i, row + dy - 1, column + dx - 1, repeat_ends=False
                    )
    return out


def attend(
    tokens: list[Tensor], in_proj: tuple[Tensor, Tensor], out_proj: torch.nn.Linear, heads: int, causal: bool = False
) -> list[Tensor]:
    """Run multi-head self-attention over a list of tokens `[D]`, each with a query, a key and a value."""
    size = len(tokens[0]) // heads
    # Queries, keys and values of every token, head by head: 3 * heads pieces each.
    projected = [(in_proj[0] @ token + in_proj[1]).split(size) for token in tokens]
    outputs = []
    for asking in range(len(tokens)):
        heard = projected[: asking + 1] if causal else projected
        mixed = []
        for head in range(heads):
            query = projected[asking][head] / math.sqrt(size)
            weights = softmax([query @ pieces[heads + head] for pieces in heard])
            mixed.append(sum(weight * pieces[2 * heads + head] for weight, pieces in zip(weights, heard, strict=True)))
        outputs.append(out_proj.weight @ torch.cat(mixed) + out_proj.bias)
    return outputs


def run_block(block: torch.nn.Module, tokens: list[Tensor], causal: bool = False) -> list[Tensor]:
    """Run a transformer block on a list of tokens, with query, key, value and MLP for each."""
    attention = block.attn
    updates = attend(
        [layer_norm(block.ln_1, token) for token in tokens],
        (attention.in_proj_weight, attention.in_proj_bias),
        attention.out_proj,
        attention.heads,
        causal,
    )
    outputs = []
    for token, update in zip(tokens, updates, strict=True):
        token = token + update
        hidden = block.mlp.c_fc.weight @ layer_norm(block.ln_2, token) + block.mlp.c_fc.bias
        hidden = hidden * torch.sigmoid(1.702 * hidden)  # CLIP's QuickGELU
        outputs.append(token + block.mlp.c_proj.weight @ hidden + block.mlp.c_proj.bias)
    return outputs


def stack_frames(frames: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(frame) for frame in frames])
