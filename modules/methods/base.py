"""The base class of methods: a CLIP inside, encoders of videos and captions, a similarity, and what is trained.

Shapes: B clips, T frames, N captions, L words, E joint embedding.

A method's settings are the keyword-only arguments of its constructor, declared as `modules.options` says. The command
line reads its flags from there, so a setting has one name everywhere.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modules.clip import CLIP
from modules.clip_weights import to_openai_key
from modules.options import Option, options_of
from modules.similarity import cosine_similarity, scaled_product, unit

MAX_LOGIT_SCALE = math.log(100.0)  # as in CLIP: similarities are never scaled by more than 100

KEY_BIAS = "the third for keys: it adds the same to all keys of a query, and softmax removes that"  # it is dead


@dataclass(frozen=True)
class DeadParameters:
    """Parameters that count as trainable but cannot learn."""

    name: str  # of a parameter, or of a module for all of its parameters
    reason: str
    share: float = 1.0  # of each tensor's values


class Method(nn.Module):
    """A way to turn CLIP into a video-text model. Subclasses set `requires_grad` and own the loop over CLIP's blocks.

    `clip` becomes one child, `self.clip`. The parameters that it has at that moment are pre-trained. All others are
    new, even those that a method adds inside `clip` later, such as a parametrization of a weight.
    """

    # Settings of the method's published code that are not offered here: the reason of each, to follow its name.
    not_offered: ClassVar[Mapping[str, str]] = {}
    # Settings that resume points of an earlier version lack, where they had the default.
    newer: ClassVar[tuple[str, ...]] = ()
    # What it needs of a backbone beside CLIP's seams, keys of `modules.backbones.NEEDS`; other backbones are refused.
    needs: ClassVar[tuple[str, ...]] = ()
    # True if each side is one vector and `similarity` is a scaled dot product. A vector index can search nothing else.
    is_dot_product: ClassVar[bool] = True
    # True if training needs a caption of every frame: `forward` then takes texts int64 `[B,1+T,L]`, a caption first.
    reads_frame_captions: bool = False

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip
        self._pretrained = tuple(clip.parameters())  # a tuple: not registered, and deepcopy maps it to the copy's own

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Any:
        """Embed clips.

        Args:
            video: `[B,T,3,H,W]` float, normalised with the mean and deviation of `clip.backbone`.
            frame_mask: `[B,T]`, true or 1 where the frame is real; padding comes last.

        Returns:
            Rows (`modules.rows`): `[B,E]`, or where `similarity` needs more, such as tokens and their mask, a
            NamedTuple of tensors with B rows each. The length of a vector means nothing, since `similarity` normalises.
        """
        raise NotImplementedError

    def encode_text(self, token_ids: Tensor) -> Any:
        """Embed captions: int64 `[N,L]` from `modules.tokenizer.Tokenizer` -> rows, `[N,E]` here."""
        return self.clip.text(token_ids)

    def similarity(self, text: Any, video: Any) -> Tensor:
        """Score every caption with every clip: rows of N captions and of B clips -> fp32 logits `[N,B]`."""
        return cosine_similarity(text, video, self.clip.logit_scale)

    def averages_texts(self) -> bool:
        """Return how several texts of a class are brought together: True: the mean of their normalised rows scores the
        class; False: each text scores it, and the scores are averaged. True needs texts of one vector each."""
        return self.is_dot_product

    def prepare(self, rows: Any) -> Any:
        """Return rows for `similarity_of_prepared`: normalised here once, and not again in each of its calls.

        A method with a `similarity` of its own gets them unchanged.
        """
        return unit(rows) if type(self).similarity is Method.similarity else rows

    def similarity_of_prepared(self, text: Any, video: Any) -> Tensor:
        """Return the same scores as `similarity`, bit by bit, from rows that `prepare` returned or parts of them."""
        if type(self).similarity is Method.similarity:
            return scaled_product(text, video, self.clip.logit_scale)
        return self.similarity(text, video)

    def batch_loss(self, loss: Any, text: Any, video: Any, video_index: Tensor | None = None) -> Tensor:
        """Return the training loss of the B pairs of the global batch, a scalar in fp32.

        A method whose loss is more than that of its scores overrides this. Every floating-point tensor of the rows must
        have a part in it.

        Args:
            loss: a `modules.losses.Loss`, of logits `[B,B]` and of `video_index`.
            text: the rows of B texts that `forward` returned, with gradient.
            video: those of their clips.
            video_index: see `modules.losses.Loss.forward`.
        """
        return loss(self.similarity(text, video), video_index)

    def regulariser(self, video: Tensor, rows: Any) -> Tensor | None:
        """Return a term to add to the loss of a training batch, a scalar, or None for none.

        It must be a mean over clips, because training averages it over the parts of a batch and over processes.

        Args:
            video: that of `encode_video`.
            rows: what `encode_video` returned for it, with gradient.
        """
        return None

    def forward(self, video: Tensor, frame_mask: Tensor, token_ids: Tensor | None) -> tuple[Any, Any]:
        """Embed B clips and N texts, such as a batch of pairs; return the rows of text (None without) and of video."""
        return None if token_ids is None else self.encode_text(token_ids), self.encode_video(video, frame_mask)

    def blank_inputs(self, max_frames: int, max_words: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return a clip and a text without content, on the method's device, to follow what a forward pass does:
        `[1,T,3,H,W]`, `[1,T]` and int64 `[1,L]`."""
        visual, device = self.clip.visual, self.clip.logit_scale.device
        video = torch.zeros(1, max_frames, 3, visual.image_size, visual.image_size, device=device)
        frame_mask = torch.ones(1, max_frames, dtype=torch.bool, device=device)
        return video, frame_mask, torch.zeros(1, max_words, dtype=torch.int64, device=device)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Return whether weight decay applies: to matrices and kernels, not to biases, norms and scalars."""
        return parameter.dim() > 1

    def rate_factor(self, name: str) -> float:
        """Return the factor on the learning rate of a trained parameter, beside that for pre-trained ones."""
        return 1.0

    def parameter_groups(self, lr: float, coef_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the trainable parameters as optimiser groups, each with `name`, `params`, `lr`, `weight_decay`.

        New parameters learn at `lr`, pre-trained ones at `lr * coef_lr` (as in CLIP4Clip), both times `rate_factor`.
        """
        groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
        for name, parameter in self.trainable_parameters():
            kind = self.is_pretrained(parameter), self.decays(name, parameter), self.rate_factor(name)
            groups.setdefault(kind, []).append(parameter)
        return [
            {
                "name": f"{'clip' if pretrained else 'new'}{'' if decayed else ', no decay'}"
                f"{'' if factor == 1 else f', lr x {factor:g}'}",
                "params": parameters,
                "lr": (lr * coef_lr if pretrained else lr) * factor,
                "weight_decay": weight_decay if decayed else 0.0,
            }
            for (pretrained, decayed, factor), parameters in sorted(groups.items())
        ]

    def is_pretrained(self, parameter: nn.Parameter) -> bool:
        """Return whether this very parameter came with the CLIP that the method was built around."""
        return any(parameter is known for known in self._pretrained)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Do what torch does behind `to`, `double` ..., which may replace parameters; track the pre-trained ones."""
        names = self._pretrained_names()
        super()._apply(fn, recurse)
        self._remember(names)
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Do what torch does, which replaces parameters if `assign` is set; track the pre-trained ones."""
        names = self._pretrained_names()
        result = super().load_state_dict(state_dict, strict, assign)
        self._remember(names)
        return result

    def _pretrained_names(self) -> list[str]:
        known = {id(parameter) for parameter in self._pretrained}
        return [name for name, parameter in self.named_parameters() if id(parameter) in known]

    def _remember(self, names: list[str]) -> None:
        parameters = dict(self.named_parameters())
        self._pretrained = tuple(parameters[name] for name in names)

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the names and tensors that training changes."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def unsaved_tensors(self) -> dict[str, Tensor]:
        """Return, by name, frozen tensors that training depends on and that `state_dict` does not have."""
        return {}

    def dead_parameters(self) -> list[DeadParameters]:
        """Return the trainable parameters that cannot learn; a method that follows a release may have some."""
        return []

    def released_name(self, name: str) -> str | None:
        """Return the name that the tensor `name` of `state_dict()` has in checkpoints of this method's released code.

        None means that they lack it; loading one of them leaves the tensor as it is.

        Raises:
            ValueError: if the method follows no released code.
        """
        if name.startswith("clip."):
            return "clip." + to_openai_key(name.removeprefix("clip."))
        raise ValueError(f"{type(self).__name__} follows no released code, so it reads no checkpoint of one")

    def released_tensors(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a released checkpoint that are the method's, by the names of `released_name`.

        Here these are all; DDP's prefix `module.` is removed. A subclass may leave out parts that are of no use to it.
        """
        return {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}

    def check_start(self, settings: Mapping[str, Any]) -> None:
        """Compare these options with the settings of the training that the loaded weights come from, by flag name.

        A subclass may warn of options that mean something else to those weights.
        """

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the trained temperature below CLIP's maximum; training calls this after every optimiser step."""
        if self.clip.logit_scale.requires_grad:
            self.clip.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


def method_options(method: type[Method]) -> list[Option]:
    """Return the settings of a method: the keyword-only arguments of its constructor."""
    return options_of(method)
