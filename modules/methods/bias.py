"""Bias tuning: CLIP's bias vectors are trained, and nothing else.

Source: Cai et al., "TinyTL: Reduce Memory, Not Parameters", NeurIPS 2020, arXiv 2007.11622. The row "Bias" of VoP's
comparison (Huang et al., CVPR 2023, arXiv 2211.12764, section 4.1) and of STOP's.
"""

from torch import Tensor

from modules.clip import CLIP
from modules.methods.base import Method
from modules.similarity import masked_mean


class Bias(Method):
    """The biases of all LayerNorms, of both layers of the MLPs and of attention's output are trained, in both towers.

    Those of queries, keys and values stay frozen: OpenAI's code has them in one `in_proj_bias`, whose name the choice
    by the ending `.bias` misses. So VoP's table has 0.104 %, 124,928 parameters of ViT-B/32; with them it would be
    171,008. The video is the mean of its frames' normalised embeddings, as in CLIP4Clip.

    All that is trained came with CLIP, so it learns at `lr` times `coef_lr`: pass `--coef_lr 1`.
    """

    def __init__(self, clip: CLIP) -> None:
        super().__init__(clip)
        for name, parameter in clip.named_parameters():
            parameter.requires_grad_(name.endswith(".bias"))

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        return masked_mean(self.clip.visual(video.flatten(0, 1)).unflatten(0, video.shape[:2]), frame_mask)
