"""A slow, plain second implementation of STOP: one clip at a time, loops over frames, patches, gaps, slots and heads.

Written from the equations, without masks. Padding frames must not matter, so here a clip has only its real frames.
Parameters are read from the modules under test; nothing else of theirs is used. `plain_parts` has what it is made of.

Shapes: T real frames of one clip, G grid side, P = G*G patches in rows, D width, c channels of a bottleneck.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.modules.stop.plain_parts import (
    attend,
    convolve_space,
    convolve_time,
    dynamics_features,
    layer_norm,
    normalised,
    relu,
    run_block,
    scaled_by_place,
    softmax,
    stack_frames,
)


@dataclass(frozen=True)
class Spatial:
    """Intra-frame stage: h^s, r, A, M, W_s and p^s."""

    tokens: Tensor
    region_mask: Tensor
    attention_map: Tensor
    dynamics_map: Tensor
    saliency: Tensor
    prompts: Tensor


@dataclass(frozen=True)
class Temporal:
    """Inter-frame stage: normalised W_t, N_t, and p^t of every slot, used or not: `[T-1][eta]` tokens."""

    frame_variation: Tensor
    prompts_per_gap: list[int]
    prompts: list[list[Tensor]]


# ---- intra-frame spatial prompting ----------------------------------------------------------------------------------


def attention_map(block: torch.nn.Module, class_tokens: Tensor, tokens: Tensor) -> Tensor:
    """A_i = Attn(h_cls, h_i); `class_tokens` `[1,D]` (one per video) or `[T,D]` (one per frame)."""
    attention, width = block.attn, tokens.shape[-1]
    size = width // attention.heads
    rows = []
    for i in range(len(tokens)):
        asking = layer_norm(block.ln_1, class_tokens[min(i, len(class_tokens) - 1)])
        query = attention.in_proj_weight[:width] @ asking + attention.in_proj_bias[:width]
        row = torch.zeros(tokens.shape[1], dtype=tokens.dtype)
        for head in range(attention.heads):
            of_head = slice(head * size, (head + 1) * size)
            scores = []
            for j in range(tokens.shape[1]):
                normal = layer_norm(block.ln_1, tokens[i, j])
                key = attention.in_proj_weight[width : 2 * width] @ normal + attention.in_proj_bias[width : 2 * width]
                scores.append(query[of_head] @ key[of_head] / math.sqrt(size))
            row = row + softmax(scores) / attention.heads
        rows.append(row)
    return torch.stack(rows).detach()


def dynamics_map(features: Tensor) -> Tensor:
    """M_ij = 1/D sum_k h~_ijk^2, divided by its sum over the frame, or by 0.001 P where that is more."""
    rows = []
    for frame in features:
        energies = [sum(token**2) / len(token) for token in frame]
        total = sum(energies)
        rows.append(torch.stack([energy / max(total, 0.001 * len(frame)) for energy in energies]))
    return torch.stack(rows)


def chosen(saliency: list[float], n_regions: int) -> list[int]:
    """Return the N_s largest; ties go to the lower index."""
    return sorted(range(len(saliency)), key=lambda j: (-saliency[j], j))[:n_regions]


def rescaled(saliency: Tensor) -> Tensor:
    """Shift and stretch each frame's saliencies to 0..1, or stretch by 1000 if their range is below 0.001."""
    return torch.stack([(row - min(row)) / max(max(row) - min(row), 0.001) for row in saliency])


def spatial_prompts(net: torch.nn.Module, normal: Tensor, grid: int) -> Tensor:
    """p_i^s = P_s(h_{i-1}, h_i, h_{i+1}): Conv3d -> ReLU -> Conv3d -> Linear -> ReLU -> Linear."""
    before, after = net.beside.weight.chunk(2, dim=1)
    own, beside = [], []
    for i, frame in enumerate(normal):
        earlier, later = normal[max(i - 1, 0)], normal[min(i + 1, len(normal) - 1)]
        own.append([net.own.weight @ token + net.own.bias for token in frame])
        beside.append([before @ (earlier[j] - token) + after @ (later[j] - token) for j, token in enumerate(frame)])
    x = stack_frames(own) + scaled_by_place(net.place, stack_frames(beside))
    x = convolve_space(net.spatial, relu(x), grid)
    frames = []
    for frame in x:
        hidden = [relu(net.hidden.weight @ token + net.hidden.bias) for token in frame]
        frames.append([net.out.weight @ token + net.out.bias for token in hidden])
    return stack_frames(frames)


def prompt_frames(prompter: torch.nn.Module, block: torch.nn.Module, class_tokens: Tensor, tokens: Tensor) -> Spatial:
    """Run the whole stage on the real frames of a clip: class tokens `[1 or T,D]`, h `[T,P,D]`."""
    frames, patches, _ = tokens.shape
    grid = math.isqrt(patches)
    normal = stack_frames([[normalised(token) for token in frame] for frame in tokens])
    attention = attention_map(block, class_tokens, tokens)
    motion = dynamics_map(dynamics_features(prompter.dynamics, normal, grid, repeat_ends=True))
    saliency = prompter.alpha * attention + (1 - prompter.alpha) * motion
    prompts = spatial_prompts(prompter.prompter, normal, grid)
    region = torch.zeros(frames, patches, dtype=tokens.dtype)
    prompted = tokens.clone()
    for i in range(frames):
        for j in chosen(saliency[i].tolist(), prompter.n_regions):
            region[i, j] = 1.0
            prompted[i, j] = tokens[i, j] + prompts[i, j]
    return Spatial(prompted, region, attention, motion, saliency, prompts)


# ---- inter-frame temporal prompting ---------------------------------------------------------------------------------


def frame_variation(features: Tensor, region_mask: Tensor, beta: float) -> list[Tensor]:
    """W_t,i = 1/(P D) sum_j (1 + beta r_ij) sum_k (h~^s_ijk)^2; `features` and `region_mask` of frames 2..T."""
    gaps, patches, width = features.shape
    variation = []
    for i in range(gaps):
        total = torch.zeros((), dtype=features.dtype)
        for j in range(patches):
            total = total + (1 + beta * region_mask[i, j]) * (features[i, j] ** 2).sum()
        variation.append(total / (patches * width))
    return variation


def prompt_gaps(prompter: torch.nn.Module, tokens: Tensor, region_mask: Tensor) -> Temporal:
    """Run the whole stage on the real frames of a clip: h^s `[T,P,D]`, r `[T,P]`, T >= 2."""
    frames, patches, _ = tokens.shape
    grid = math.isqrt(patches)
    normal = stack_frames([[normalised(token) for token in frame] for frame in tokens])
    change = torch.stack([normal[i] - normal[i - 1] for i in range(1, frames)])
    features = dynamics_features(prompter.dynamics, change, grid, repeat_ends=False)
    variation = frame_variation(features, region_mask[1:], prompter.beta)
    largest = max([torch.tensor(prompter.noise_floor, dtype=tokens.dtype), *variation])
    shares = [value / largest for value in variation]
    counts = [math.ceil(prompter.eta * share.item()) if share.item() > 1e-3 else 0 for share in shares]
    prompts = temporal_prompts(prompter.prompter, prompter.slots, change, shares, grid)
    return Temporal(torch.stack(shares), counts, prompts)


def temporal_prompts(
    net: torch.nn.Module, slots: Tensor, change: Tensor, shares: list[Tensor], grid: int
) -> list[list[Tensor]]:
    """p^t = P_t(dh): Attention -> Conv3d -> ReLU -> Conv3d -> Linear over the patches, times 1 + W_t, plus the slot."""
    mha = net.attention
    attended = []
    for gap in change:
        down = [net.down.weight @ token + net.down.bias for token in gap]
        mixed = attend(down, (mha.in_proj_weight, mha.in_proj_bias), mha.out_proj, mha.heads)
        attended.append([token + answer for token, answer in zip(down, mixed, strict=True)])
    x = scaled_by_place(net.place, convolve_time(net.temporal, stack_frames(attended)))
    x = convolve_space(net.spatial, relu(x), grid)
    prompts = []
    for i in range(len(change)):
        of_gap = []
        for slot in range(len(slots)):
            mixed = torch.zeros_like(x[0, 0]) + net.to_slots.bias[slot]
            for j in range(grid * grid):
                mixed = mixed + net.to_slots.weight[slot, j] * x[i, j]
            of_gap.append(slots[slot] + net.up.weight @ (mixed * (1 + shares[i])) + net.up.bias)
        prompts.append(of_gap)
    return prompts


def valid_prompts(temporal: Temporal | None, gap: int) -> list[Tensor]:
    """Return the first N_t prompts of a gap; none before the first frame and after the last one."""
    if temporal is None or not 0 <= gap < len(temporal.prompts):
        return []
    return temporal.prompts[gap][: temporal.prompts_per_gap[gap]]


# ---- the prompted sequence, the towers ------------------------------------------------------------------------------


def keep(tokens: list[Tensor], is_prompt: list[bool]) -> list[Tensor]:
    return [token for token, dropped in zip(tokens, is_prompt, strict=True) if not dropped]


def run_joint(
    block: torch.nn.Module, class_tokens: Tensor, tokens: Tensor, temporal: Temporal | None
) -> tuple[Tensor, Tensor]:
    """Run the block on [h_cls, h^s_1, p^t_1, h^s_2, p^t_2, ..., h^s_T]; the prompts' outputs are dropped."""
    sequence, is_prompt = [class_tokens[0]], [False]
    for i in range(len(tokens)):
        sequence += list(tokens[i])
        is_prompt += [False] * len(tokens[i])
        inserted = valid_prompts(temporal, i)
        sequence += inserted
        is_prompt += [True] * len(inserted)
    out = keep(run_block(block, sequence), is_prompt)
    return out[0].unsqueeze(0), torch.stack(out[1:]).view_as(tokens)


def run_by_frame(
    block: torch.nn.Module, class_tokens: Tensor, tokens: Tensor, temporal: Temporal | None
) -> tuple[Tensor, Tensor]:
    """Run the block on [p^t_{i-1}, h_cls,i, h^s_i, p^t_i] for every frame i; the prompts' outputs are dropped."""
    new_class_tokens, new_tokens = [], []
    for i in range(len(tokens)):
        before, after = valid_prompts(temporal, i - 1), valid_prompts(temporal, i)
        sequence = [*before, class_tokens[i], *tokens[i], *after]
        is_prompt = [True] * len(before) + [False] * (1 + len(tokens[i])) + [True] * len(after)
        out = keep(run_block(block, sequence), is_prompt)
        new_class_tokens.append(out[0])
        new_tokens.append(out[1:])
    return torch.stack(new_class_tokens), stack_frames(new_tokens)


def encode_video(method: torch.nn.Module, video: Tensor) -> tuple[Tensor, list[tuple[Spatial | None, Temporal | None]]]:
    """Return the embedding `[E]` of one clip's real frames `[T,3,H,W]`, and what every layer found."""
    visual = method.clip.visual
    embedded = visual.embed(video)
    joint = method.attention == "joint"
    class_tokens, tokens = (embedded[:1, 0] if joint else embedded[:, 0]), embedded[:, 1:]
    found = []
    for layer, block in enumerate(visual.blocks):
        spatial = temporal = None
        region_mask = torch.zeros_like(tokens[..., 0])
        if layer < len(method.intra):
            spatial = prompt_frames(method.intra[layer], block, class_tokens, tokens)
            tokens, region_mask = spatial.tokens, spatial.region_mask
        if layer < len(method.inter) and len(tokens) > 1:
            temporal = prompt_gaps(method.inter[layer], tokens, region_mask)
        found.append((spatial, temporal))
        class_tokens, tokens = (run_joint if joint else run_by_frame)(block, class_tokens, tokens, temporal)
    embeddings = [layer_norm(visual.ln_post, token) @ visual.proj for token in class_tokens]
    if joint:
        return embeddings[0], found
    return sum(embedding / embedding.norm() for embedding in embeddings) / len(embeddings), found


def encode_caption(method: torch.nn.Module, token_ids: Tensor) -> Tensor:
    """Encode one caption `[L]`: every text block inserts its prompts after START and then drops them."""
    text = method.clip.text
    tokens = [text.token_embedding.weight[token] + text.positional_embedding[i] for i, token in enumerate(token_ids)]
    for layer, block in enumerate(text.blocks):
        prompts = list(method.text_prompts[layer])
        sequence = [tokens[0], *prompts, *tokens[1:]]
        is_prompt = [False] + [True] * len(prompts) + [False] * (len(tokens) - 1)
        tokens = keep(run_block(block, sequence, causal=True), is_prompt)
    end = max(range(len(token_ids)), key=lambda i: int(token_ids[i]))
    return layer_norm(text.ln_final, tokens[end]) @ text.text_projection


# ---- inputs ---------------------------------------------------------------------------------------------------------


def in_sequences(patches: Tensor, count: int = 1) -> Tensor:
    """Put patches `[B,T,P,D]` into `count` sequences per clip, with class tokens far too large for patches."""
    by_sequence = patches.reshape(len(patches), count, -1, patches.shape[-1])
    return torch.cat([torch.full_like(by_sequence[:, :, :1], 1e3), by_sequence], dim=2)


def padded_clips(seed: int, frames_of_clip: list[int], patches: int, width: int) -> tuple[Tensor, Tensor]:
    """Return clips of tokens `[B,T,P,D]` float64, T the longest, and their mask `[B,T]`; padding is large nonsense.

    From frame to frame anything from nothing to everything changes.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    longest = max(frames_of_clip)
    tokens = 100 * draw(len(frames_of_clip), longest, patches, width)
    for clip, frames in zip(tokens, frames_of_clip, strict=True):
        clip[0] = draw(patches, width)
        for i in range(1, frames):
            pace = [0.0, 0.1, 0.4, 1.0][int(torch.randint(4, (), generator=generator))]
            clip[i] = clip[i - 1] + pace * draw(patches, width)
    return tokens, torch.arange(longest) < torch.tensor(frames_of_clip)[:, None]


def randomise(module: torch.nn.Module, seed: int, scale: float = 0.3) -> None:
    """Give every parameter outside CLIP, zero-initialised and frozen ones too, random values from a seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.startswith("clip."):
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
