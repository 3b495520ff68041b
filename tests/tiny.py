"""Small models and inputs that tests share."""

from typing import Any

import torch

from modules.backbones import Backbone
from modules.clip import CLIP, CLIPArchitecture
from modules.losses import symmetric_info_nce
from modules.methods import METHODS, Method, method_options

TINY = CLIPArchitecture(
    embed_dim=24,
    image_size=32,
    patch_size=8,
    vision_width=32,
    vision_layers=2,
    vision_heads=2,
    context_length=16,
    vocab_size=49408,
    text_width=16,
    text_layers=2,
    text_heads=2,
)


# Values that fit a tiny CLIP, for methods with these options.
FITTING = {"max_frames": 4, "cross_num_hidden_layers": 2, "prefix": 2, "postfix": 2}


def tiny_clip(seed: int = 0, architecture: CLIPArchitecture = TINY, similarity: str = "softmax") -> CLIP:
    """Return a CLIP with random weights. Biases and norms are random too, not at their initial values."""
    torch.manual_seed(seed)
    clip = CLIP(architecture, Backbone(architecture, similarity=similarity))
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if parameter.dim() == 1 and name != "logit_scale":
                parameter.add_(0.1 * torch.randn_like(parameter))
    return clip


def fitting_options(name: str, **values: Any) -> dict[str, Any]:
    """Return those of `FITTING` and `values` that are options of a method."""
    known = {option.name for option in method_options(METHODS[name])}
    return {option: value for option, value in (FITTING | values).items() if option in known}


def tiny_batch(
    seed: int = 0, batch: int = 3, frames: int = 4, words: int = 8, architecture: CLIPArchitecture = TINY
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return video `[B,T,3,H,W]`, frame_mask `[B,T]` and token_ids `[B,L]`. Where B > 1, the second clip is padded."""
    generator = torch.Generator().manual_seed(seed)
    side = architecture.image_size
    video = torch.randn(batch, frames, 3, side, side, generator=generator)
    frame_mask = torch.ones(batch, frames, dtype=torch.bool)
    if batch > 1 and frames > 1:
        frame_mask[1, -1] = False
    token_ids = torch.randint(300, 49000, (batch, words), generator=generator)
    token_ids[:, 0], token_ids[:, -2], token_ids[:, -1] = 49406, 49407, 0
    return video, frame_mask, token_ids


def loss_of(method: Method, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the training loss; a method that reads captions of frames gets those of the other clips in their place."""
    video, frame_mask, token_ids = batch
    if method.reads_frame_captions:
        frames = [token_ids.roll(frame, dims=0) for frame in range(video.shape[1])]
        token_ids = torch.stack([token_ids, *frames], dim=1)
    return method.batch_loss(symmetric_info_nce, *method(video, frame_mask, token_ids))
