"""Augmentation of training clips: one draw for all frames of a clip, by torchvision's transforms.

Every draw depends on the generator that the caller passes, and so on (seed, epoch, index) alone. A horizontal flip may
turn a clip into one of another class ("pulling something from left to right"), so it exchanges labels by
`Classes.mirrored`.

MixUp (Zhang et al., ICLR 2018, arXiv 1710.09412) and CutMix (Yun et al., ICCV 2019, arXiv 1905.04899) mix two clips of
a batch and their labels. Time is not mixed: frame t meets frame t.

Shapes: B clips, T frames, S image side, K classes, h x w pixels of a whole frame.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dataloaders.classes import Classes
from dataloaders.quoting import quoted, some
from dataloaders.transforms import CLIP_MEAN

Flip = Literal["none", "mapped", "plain", "plain_despite_map"]  # --flip
FLIP: tuple[str, ...] = get_args(Flip)
GREY = [round(255 * mean) for mean in CLIP_MEAN]  # what erased and empty pixels get: about 0 after normalisation

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for a training clip; the defaults draw nothing. Each field is the flag of its name.

    In the order of application:

    - `crop_scale` is the smallest share of a frame's area that is cut out at random and resized to the square (sides
      from 3:4 to 4:3); 1 keeps the middle square, as in evaluation. Instead of it, `short_side_max` resizes the short
      side to a length drawn from CLIP's S to so many pixels, bilinearly and without antialiasing, and cuts out a square
      at a random place, as PySlowFast does; 0 is off.
    - `jitter_probability`: brightness and contrast change by up to 40 %, saturation by 20 %, hue by a tenth of the
      circle. `gray_probability`: the colours go.
    - `rand_augment_ops` operations of RandAugment (Cubuk et al., arXiv 1909.13719), none of which mirrors, with
      `rand_augment_magnitude` 0 to 30; timm's m7 of 10 is 21.
    - `erasing_probability`: a rectangle of all frames becomes grey.
    - `flip` mirrors a clip with `flip_probability`. "mapped" exchanges its label by `Classes.mirrored`. "plain" keeps
      the label and is refused where the map exchanges classes. "plain_despite_map" keeps it there too, only to follow
      work that does so.
    - `mixup_alpha` and `cutmix_alpha`, parameters of Beta distributions, mix pairs of clips; with both, each is taken
      half of the time.

    Raises ValueError for a value out of its range.
    """

    crop_scale: float = 1.0
    flip: str = "none"
    flip_probability: float = 0.5
    jitter_probability: float = 0.0
    gray_probability: float = 0.0
    rand_augment_ops: int = 0
    rand_augment_magnitude: int = 9
    erasing_probability: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    short_side_max: int = 0

    def __post_init__(self) -> None:
        if self.flip not in FLIP:
            raise ValueError(f"--flip is {quoted(self.flip)}: pass one of {', '.join(FLIP)}.")
        if not 0 < self.crop_scale <= 1:
            raise ValueError(f"--crop_scale is {self.crop_scale}: pass a share of the area, above 0 and at most 1.")
        if self.short_side_max < 0:
            raise ValueError(f"--short_side_max is {self.short_side_max}: pass 0 (off) or a number of pixels.")
        if self.short_side_max and self.crop_scale < 1:
            raise ValueError(
                f"--short_side_max {self.short_side_max} and --crop_scale {self.crop_scale} are two ways to cut out "
                "squares: pass --crop_scale 1 or --short_side_max 0."
            )
        for name in ("flip_probability", "jitter_probability", "gray_probability", "erasing_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is {getattr(self, name)}: pass a probability from 0 to 1.")
        if self.rand_augment_ops < 0 or not 0 <= self.rand_augment_magnitude <= 30:
            raise ValueError(
                f"--rand_augment_ops is {self.rand_augment_ops} and --rand_augment_magnitude "
                f"{self.rand_augment_magnitude}: pass 0 or more operations and a magnitude from 0 to 30."
            )
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} is {getattr(self, name)}: pass 0 (off) or more.")

    @property
    def crops(self) -> bool:
        """Return whether squares are cut out of whole frames at random."""
        return self.crop_scale < 1 or self.short_side_max > 0

    @property
    def mixes(self) -> bool:
        """Return whether pairs of a batch are mixed."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def label_after_flip(self, classes: Classes) -> np.ndarray:
        """Return the label of each class's clips after a flip, int64 [K]; -1 for a class whose clips are not flipped.

        That is every class without flips, and with "mapped" a class whose mirrored class is not among the K. Raises
        ValueError for "plain" flips of classes of which some are exchanged by a flip.
        """
        own = np.arange(len(classes))
        if self.flip == "none" or self.flip_probability == 0:
            return np.full_like(own, -1)
        exchanged = {key: classes.mirrored.get(key, key) for key in classes.keys}
        pairs = {" / ".join(sorted(pair)) for pair in exchanged.items() if len({*pair}) == 2}
        if self.flip == "plain" and pairs:
            raise ValueError(
                f"--flip plain would mislabel clips, because a flip exchanges classes ({some(sorted(pairs), 3)}): pass "
                "--flip mapped."
            )
        if self.flip == "mapped":
            id_of = {key: number for number, key in enumerate(classes.keys)}
            return np.array([id_of.get(exchanged[key], -1) for key in classes.keys], dtype=np.int64)
        return own

    def pixel_transform(self, size: int, interpolation: str = "bicubic", antialias: bool = True) -> Transform | None:
        """Return all that is done to a clip's pixels but the flip, uint8 [T, 3, h, w] -> uint8 [T, 3, S, S]; None for
        nothing.

        The function draws from torch's global generator; `drawing` seeds it. Raises ValueError if `short_side_max` is
        smaller than S.
        """
        if 0 < self.short_side_max < size:
            raise ValueError(
                f"--short_side_max is {self.short_side_max}: pass 0 (off), or at least the {size} pixels of this CLIP."
            )
        colours = self.jitter_probability or self.gray_probability
        if not (self.crops or colours or self.rand_augment_ops or self.erasing_probability):
            return None
        from torchvision.transforms import v2  # takes a second, and most runs draw nothing

        steps: list[torch.nn.Module] = []
        bilinear = v2.InterpolationMode.BILINEAR
        if self.short_side_max:
            steps.append(v2.RandomResize(size, self.short_side_max + 1, interpolation=bilinear, antialias=False))
            steps.append(v2.RandomCrop(size))
        elif self.crops:
            how = v2.InterpolationMode(interpolation)
            steps.append(v2.RandomResizedCrop(size, (self.crop_scale, 1.0), interpolation=how, antialias=antialias))
        if self.jitter_probability:
            jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
            steps.append(v2.RandomApply([jitter], self.jitter_probability))
        if self.gray_probability:
            steps.append(v2.RandomGrayscale(self.gray_probability))
        if self.rand_augment_ops:
            steps.append(
                v2.RandAugment(self.rand_augment_ops, self.rand_augment_magnitude, interpolation=bilinear, fill=GREY)
            )
        if self.erasing_probability:
            steps.append(v2.RandomErasing(self.erasing_probability, value=GREY))
        return v2.Compose(steps)

    def draw_mixing(self, size: int, generator: np.random.Generator) -> Tensor:
        """Draw how a pair of clips is mixed, float32 [5]: (weight, top, bottom, left, right).

        A clip keeps `weight` of itself outside the box, in pixels, and nothing inside of it; the rest is the other
        clip's. MixUp has an empty box, CutMix the weight 1.
        """
        is_cut = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or generator.random() < 0.5)
        alpha = self.cutmix_alpha if is_cut else self.mixup_alpha
        weight = generator.beta(alpha, alpha)
        if not is_cut:
            return torch.tensor([weight, 0, 0, 0, 0], dtype=torch.float32)
        half = int(0.5 * size * np.sqrt(1 - weight))
        centres = generator.integers(size, size=2)
        top, left = np.maximum(centres - half, 0)
        bottom, right = np.minimum(centres + half, size)
        return torch.tensor([1, top, bottom, left, right], dtype=torch.float32)


def drawing(transform: Transform, frames: Tensor, seed: int) -> Tensor:
    """Return the transformed frames; the draws depend on `seed` alone and leave torch's generators as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds GPUs too
        return transform(frames)


def mix_pairs(video: Tensor, label: Tensor, mixing: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Mix the clips 2 i and 2 i + 1 of a batch: video uint8 [B, T, 3, S, S] and targets float32 [B, K].

    The pair is mixed as the draw of its first clip says, `mixing` float32 [B, 5] of `draw_mixing`; all frames alike.
    Targets are the shares of the pixels that came from clips of each class. The last of an odd number of clips stays as
    it is. Nothing is drawn here, so the same items give the same on any number of processes and of parts of a batch, as
    long as each part is even.

    `video` uint8 [B, T, 3, S, S], `label` int64 [B].
    """
    size, number = video.shape[-1], torch.arange(len(video), device=video.device)
    partner = (number ^ 1).clamp(max=len(video) - 1)
    weight, top, bottom, left, right = mixing[number - number % 2].unbind(1)
    pixel = torch.arange(size, device=video.device)
    inside_rows = (pixel >= top[:, None]) & (pixel < bottom[:, None])
    inside_columns = (pixel >= left[:, None]) & (pixel < right[:, None])
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    own = torch.where(inside, 0, weight[:, None, None])[:, None, None]
    mixed = video[partner].float().lerp_(video.float(), own).round_().to(torch.uint8)

    share = (weight * (1 - (bottom - top) * (right - left) / size**2))[:, None]
    one_hot = torch.nn.functional.one_hot(label, n_classes).float()
    return mixed, torch.lerp(one_hot[partner], one_hot, share)
