"""TempMe (Shen et al., ICLR 2025, arXiv 2409.01156; github.com/LunarShen/TempMe at commit e624930): LoRA on a frozen
CLIP whose vision tower merges tokens, first inside of frames and then across neighbouring frames.

Shapes: B clips, T frames, G groups of frames that see each other (T at first), S tokens of a group, C of which are the
class tokens of its frames, D width, E joint embedding.
"""

import logging
import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from modules.clip import CLIP, Block, KeysValues
from modules.frame_count import check_frames
from modules.lora import RELEASED_TOWERS
from modules.methods.lora import LoRAMethod
from modules.options import Range
from modules.similarity import masked_mean
from modules.token_merging import bias, match, merge

log = logging.getLogger("stop")

JOINS = 3  # groups are joined up to so many times


class TempMe(LoRAMethod):
    """Section 3 of the paper: ImgMe merges tokens of a frame; from `merge_layer` on, ClipMe joins groups of frames.

    The class tokens never merge: a video is the mean of its frames, as in CLIP4Clip. Which tokens merge has no
    gradient.

    Raises:
        ValueError: if `merge_layer`, `merge_frame_num` or `merge_token_proportion` is no list of numbers as its help
            says, or does not fit this CLIP and `max_frames`. `encode_video` raises it for clips of another length.
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        lora_dim: Annotated[int, "rank of LoRA's additions to queries, keys, values", Range(1)] = 8,
        max_frames: Annotated[int, "T, frames of a clip", Range(1)] = 12,
        tome_r: Annotated[
            int, "tokens of a frame that merge in each block before the first of merge_layer", Range(0)
        ] = 2,
        merge_layer: Annotated[
            str,
            "blocks, counted from 0, before which neighbouring groups of frames are joined, such as 8-9-10; unset: the "
            "blocks from two thirds of the depth to the last but one, at most three and at most as many as max_frames "
            "has prime factors (8-9-10 for 12 blocks and 12 frames)",
        ] = "",
        merge_frame_num: Annotated[
            str,
            "groups joined into one at each of merge_layer, such as 2-2-3; unset: the prime factors of max_frames in "
            "rising order, the last number is the product of the rest (2-2-3 for 12 frames)",
        ] = "",
        merge_token_proportion: Annotated[
            str, "percent of the tokens that merge right after a join, and percent in each block from there on"
        ] = "30-10",
        padding: Annotated[
            Literal["hidden", "seen"],
            "hidden: padded frames take no part in attention and merging; seen: as in the released code, they do",
        ] = "hidden",
    ) -> None:
        super().__init__(clip, lora_dim=lora_dim)
        visual = clip.visual
        self.joined = plan_joins(len(visual.blocks), max_frames, merge_layer, merge_frame_num)
        self.across, self.inside = _percentages(merge_token_proportion)
        self.max_frames, self.tome_r, self.padding = max_frames, tome_r, padding
        self.positions, groups = nn.ParameterDict(), max_frames
        for layer, number in self.joined.items():
            self.positions[str(layer)] = nn.Parameter(torch.zeros(1, groups, 1, visual.width))
            groups //= number

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        return masked_mean(self.encode_frames(video, frame_mask), frame_mask)

    def encode_frames(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        """Embed the frames of clips by their class tokens: `[B,T,3,H,W]` -> `[B,T,E]`, not normalised."""
        check_frames(video.shape[1], self.max_frames)
        visual = self.clip.visual
        x, classes = visual.embed(video.flatten(0, 1)), 1
        size = x.new_ones(x.shape[:2], dtype=torch.float32)
        if self.padding == "hidden":
            size = size * frame_mask.flatten().unsqueeze(1)
        for layer, block in enumerate(visual.blocks):
            assert isinstance(block, Block)
            if number := self.joined.get(layer, 0):
                x, size, classes = self._join(layer, number, x, size, classes)
            if block is visual.blocks[-1]:  # only its class tokens are read, so its other tokens need not merge
                x, _ = block.run(self._attend, block, x, size, classes)
            else:
                x, keys = block.run(self._attend, block, x, size, x.shape[1])
                x, size = self._merge(x, size, keys, classes, self._merged_inside(layer, x.shape[1], classes))
            x = block.feed_forward(x)
        frames = x[:, :classes].reshape(-1, 1, visual.width)  # of all groups, in the order of the frames
        return visual.pool(frames).unflatten(0, video.shape[:2])

    def _attend(self, block: Block, x: Tensor, size: Tensor, queries: int) -> tuple[Tensor, Tensor]:
        """Return the first `queries` tokens after attention, and the mean over heads of the keys, `[N,S,D/heads]`."""
        q, k, v = block.attn.project(block.ln_1(x))
        gathered = block.attn.attend(q[:, :queries], KeysValues(k, v), bias(size))
        return x[:, :queries] + block.attn.project_out(gathered), k.unflatten(2, (block.attn.heads, -1)).mean(dim=2)

    def _join(self, layer: int, number: int, x: Tensor, size: Tensor, classes: int) -> tuple[Tensor, Tensor, int]:
        """Join each `number` neighbouring groups, and merge the most similar tokens of the joined ones.

        Tokens are compared before they get the learned position of their group.
        """
        compared, size = side_by_side(x.detach(), number, classes), side_by_side(size, number, classes)
        position = self.positions[str(layer)]
        x = (x.unflatten(0, (-1, position.shape[1])) + position).flatten(0, 1)
        x, classes = side_by_side(x, number, classes), classes * number
        count = min(x.shape[1] * self.across // 100, (x.shape[1] - classes) // 2)
        return *self._merge(x, size, compared, classes, count), classes

    def _merged_inside(self, layer: int, tokens: int, classes: int) -> int:
        """Return how many tokens merge in a block, between its attention and its MLP."""
        is_before = not self.joined or layer < min(self.joined)
        return min(self.tome_r if is_before else tokens * self.inside // 100, (tokens - classes) // 2)

    def _merge(self, x: Tensor, size: Tensor, metric: Tensor, classes: int, count: int) -> tuple[Tensor, Tensor]:
        return merge(x, size, match(metric, size, classes, count), count) if count else (x, size)

    def released_name(self, name: str) -> str | None:
        if name.startswith("positions."):
            layer = name.removeprefix("positions.")
            return f"{RELEASED_TOWERS['visual']}{layer}.TVPt_Video_Positional_embedding"
        return super().released_name(name)


def side_by_side(x: Tensor, number: int, classes: int) -> Tensor:
    """Join `number` neighbouring groups: `[N,S,...]` -> `[N/number,S·number,...]`, all class tokens first."""
    groups = x.unflatten(0, (-1, number))
    return torch.cat([groups[:, :, :classes].flatten(1, 2), groups[:, :, classes:].flatten(1, 2)], dim=1)


def plan_joins(depth: int, max_frames: int, merge_layer: str, merge_frame_num: str) -> dict[int, int]:
    """Return how many groups are joined into one, by the block before which that happens.

    Raises:
        ValueError: if what is set is no list of numbers, or fits neither the depth of the tower nor `max_frames`.
    """
    factors = _prime_factors(max_frames)
    numbers = _numbers("merge_frame_num", merge_frame_num)
    layers = _numbers("merge_layer", merge_layer)
    if not layers:
        fitting = range(max(0, min(2 * depth // 3, depth - 2)), max(1, depth - 1))
        layers = list(fitting)[: min(JOINS, len(numbers or factors))]
    if not numbers and layers:
        first, rest = factors[: len(layers) - 1], factors[len(layers) - 1 :]
        numbers = (first + [math.prod(rest)] + [1] * len(layers))[: len(layers)]
    if sorted(set(layers)) != layers or (layers and layers[-1] >= depth):
        raise ValueError(
            f"--merge_layer {merge_layer} must name rising blocks from 0 to {depth - 1}, those of this CLIP's vision "
            "tower; leave it out for blocks that fit"
        )
    if len(numbers) != len(layers):
        raise ValueError(
            f"--merge_frame_num {merge_frame_num} has {len(numbers)} numbers and merge_layer has {len(layers)} blocks "
            f"({_listed(layers)}): give one number for each"
        )
    groups = max_frames
    for number in numbers:
        if number < 1 or groups % number:
            raise ValueError(
                f"--merge_frame_num {_listed(numbers)} does not divide the {max_frames} frames of a clip: there are "
                f"{groups} groups where {number} shall be joined into one; change it or --max_frames"
            )
        groups //= number
    if not (merge_layer and merge_frame_num):
        log.info("TempMe joins groups of frames: merge_layer %s, merge_frame_num %s", _listed(layers), _listed(numbers))
    return dict(zip(layers, numbers, strict=True))


def _percentages(text: str) -> tuple[int, int]:
    numbers = _numbers("merge_token_proportion", text)
    if len(numbers) != 2 or max(numbers) > 100:
        raise ValueError(f"--merge_token_proportion {text!r} must be two numbers from 0 to 100, such as 30-10")
    return numbers[0], numbers[1]


def _numbers(name: str, text: str) -> list[int]:
    parts = text.split("-") if text else []
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise ValueError(f"--{name} {text!r} is no list of whole numbers with - between them, such as 8-9-10")
    return [int(part) for part in parts]


def _listed(numbers: list[int]) -> str:
    return "-".join(map(str, numbers)) or "none"


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors
