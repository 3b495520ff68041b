"""STOP with token merging on all patches: nothing is left out, and equal tokens stand for a merged one.

Uses the slow, plain STOP of `stop_reference`. Shapes: T frames, P patches, D width.
"""

import torch
from torch import Tensor

from tests.modules.stop import plain_parts as plain
from tests.modules.stop import stop_reference as slow

Groups = list[list[int]]  # the patches of each token of a frame, in the order of the tokens


def merge(groups: Groups, tokens: list[Tensor], count: int) -> Groups:
    """Return the groups after `count` tokens at even places have merged into their most similar ones at odd places."""
    a, b = range(0, len(groups), 2), range(1, len(groups), 2)
    cosine = {(s, t): torch.cosine_similarity(tokens[s], tokens[t], dim=0).item() for s in a for t in b}
    best = {s: max(b, key=lambda t, s=s: cosine[s, t]) for s in a}
    merged = sorted(a, key=lambda s: -cosine[s, best[s]])[:count]
    rest = [groups[s] for s in a if s not in merged]
    return rest + [groups[t] + [j for s in merged if best[s] == t for j in groups[s]] for t in b]


def averaged(tokens: Tensor, groups_of_frame: list[Groups]) -> Tensor:
    """Give every patch of `[T,P,D]` the mean of its group."""
    out = tokens.clone()
    for frame, groups in enumerate(groups_of_frame):
        for group in groups:
            for j in group:
                out[frame, j] = sum(tokens[frame, k] for k in group) / len(group)
    return out


def encode_video(method: torch.nn.Module, video: Tensor, counts: list[int]) -> tuple[Tensor, list[list[Groups]]]:
    """Return the embedding `[E]` of one clip's real frames `[T,3,H,W]`, and the groups of frames before each block."""
    visual = method.clip.visual
    embedded = visual.embed(video)
    joint = method.attention == "joint"
    class_tokens, tokens = (embedded[:1, 0] if joint else embedded[:, 0]), embedded[:, 1:]
    groups_of_frame: list[Groups] = [[[j] for j in range(tokens.shape[1])] for _ in tokens]
    found = []
    for layer, block in enumerate(visual.blocks):
        for frame, groups in enumerate(groups_of_frame if counts[layer] else []):
            read = [plain.layer_norm(block.ln_1, tokens[frame, group[0]]) for group in groups]
            groups_of_frame[frame] = merge(groups, read, counts[layer])
        tokens = averaged(tokens, groups_of_frame)
        temporal, region_mask = None, torch.zeros_like(tokens[..., 0])
        if layer < len(method.intra):
            spatial = slow.prompt_frames(method.intra[layer], block, class_tokens, tokens)
            tokens, region_mask = averaged(spatial.tokens, groups_of_frame), spatial.region_mask
        if layer < len(method.inter) and len(tokens) > 1:
            temporal = slow.prompt_gaps(method.inter[layer], tokens, region_mask)
        found.append(list(groups_of_frame))
        run = slow.run_joint if joint else slow.run_by_frame
        class_tokens, tokens = run(block, class_tokens, tokens, temporal)
    embeddings = [plain.layer_norm(visual.ln_post, token) @ visual.proj for token in class_tokens]
    if joint:
        return embeddings[0], found
    return sum(embedding / embedding.norm() for embedding in embeddings) / len(embeddings), found
