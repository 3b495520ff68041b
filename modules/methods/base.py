"""What every method offers: CLIP inside, video and text encoders, a similarity, and what of it is trained.

Shapes: B clips, T frames, N captions, L words, E joint embedding.

A method's settings are the keyword-only arguments of its constructor, declared as `modules.options` says. The command
line reads its flags from there, so a setting has one name everywhere.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from modules.clip import CLIP
from modules.clip_weights import to_openai_key
from modules.options import Option, options_of
from modules.similarity import cosine_similarity

MAX_LOGIT_SCALE = math.log(100.0)  # CLIP's own ceiling: similarities are never scaled by more than 100


@dataclass(frozen=True)
class DeadParameters:
    """Parameters that count as trainable and cannot learn."""

    name: str  # a parameter, or a module that stands for all of its own
    reason: str
    share: float = 1.0  # of each tensor's values


class Method(nn.Module):
    """A way to turn CLIP into a video-text model. Subclasses set `requires_grad` and own the loop over CLIP's blocks.

    `clip` stays one child, `self.clip`; everything a method adds stands beside it, so that parameter groups, parameter
    counts and checkpoints can tell pre-trained from new.
    """

    # Whether each side is one vector and `similarity` a scaled dot product, which is what a vector index can search.
    is_dot_product: ClassVar[bool] = True

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip

    def encode_video(self, video: torch.Tensor, frame_mask: torch.Tensor) -> Any:
        """Embed clips.

        Args:
            video: `[B,T,3,H,W]` float, normalised with the mean and deviation of `clip.backbone`.
            frame_mask: `[B,T]`, true or 1 where the frame is real; padding comes last.

        Returns:
            Rows (`modules.rows`): `[B,E]`, or where `similarity` needs more, such as tokens and their mask, a
            NamedTuple of tensors with B rows each. The length of a vector means nothing, since `similarity` normalises.
        """
        raise NotImplementedError

    def encode_text(self, token_ids: torch.Tensor) -> Any:
        """Embed captions: int64 `[N,L]` from `modules.tokenizer.Tokenizer` -> rows, `[N,E]` here."""
        return self.clip.text(token_ids)

    def similarity(self, text: Any, video: Any) -> torch.Tensor:
        """Score every caption with every clip: rows of N captions and of B clips -> fp32 logits `[N,B]`."""
        return cosine_similarity(text, video, self.clip.logit_scale)

    def forward(self, video: torch.Tensor, frame_mask: torch.Tensor, token_ids: torch.Tensor) -> tuple[Any, Any]:
        """Embed a batch of pairs: the rows of text and those of video."""
        return self.encode_text(token_ids), self.encode_video(video, frame_mask)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies to this parameter: matrices and kernels yes, biases, norms and scalars no."""
        return parameter.dim() > 1

    def parameter_groups(self, lr: float, coef_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """The trainable parameters as optimiser groups, each with `name`, `params`, `lr`, `weight_decay`.

        What the method adds learns at `lr`, pre-trained CLIP tensors at `lr * coef_lr` (as in CLIP4Clip).
        """
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.trainable_parameters():
            groups.setdefault((name.startswith("clip."), self.decays(name, parameter)), []).append(parameter)
        return [
            {
                "name": f"{'clip' if from_clip else 'new'}{'' if decayed else ', no decay'}",
                "params": parameters,
                "lr": lr * coef_lr if from_clip else lr,
                "weight_decay": weight_decay if decayed else 0.0,
            }
            for (from_clip, decayed), parameters in sorted(groups.items())
        ]

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and tensors that training changes."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def dead_parameters(self) -> list[DeadParameters]:
        """Those of `trainable_parameters` that training cannot use; a method that follows a release may have some."""
        return []

    def released_name(self, name: str) -> str:
        """What the checkpoints of this method's released code call the tensor `name` of `state_dict()`.

        Raises:
            ValueError: if the method follows no released code.
        """
        if name.startswith("clip."):
            return "clip." + to_openai_key(name.removeprefix("clip."))
        raise ValueError(f"{type(self).__name__} follows no released code, so it reads no checkpoint of one")

    @torch.no_grad()
    def after_step(self) -> None:
        """Called after every optimiser step; keeps the trained temperature under CLIP's ceiling."""
        if self.clip.logit_scale.requires_grad:
            self.clip.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


def method_options(method: type[Method]) -> list[Option]:
    """Return the settings of a method: the keyword-only arguments of its constructor."""
    return options_of(method)
