"""Mug-STAN (Liu et al., arXiv 2311.15075; github.com/farewellthree/STAN): the frames of STAN, not their mean, are
compared with the words of a caption (`modules.stan.mug`).

Shapes: B clips, T frames, N captions, L words, E joint embedding.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from modules.clip import CLIP
from modules.frame_rows import FrameRows
from modules.methods.base import DeadParameters
from modules.methods.stan import STAN
from modules.options import OnlyWith, Range
from modules.stan.mug import (
    Mug,
    Padding,
    Tokens,
    WeightedInteraction,
    WordRows,
    mug_similarity,
    prepare_tokens,
    words_until_end,
)

WEIGHTS = ("text_weight_fc.", "video_weight_fc.")


class MugSTAN(STAN):
    """A clip is its frames' embeddings u_t, a caption those of its words, START and END among them.

    `options` are those of STAN. Raises ValueError as STAN does.
    """

    needs = ("class token", "END")

    is_dot_product = False

    def __init__(
        self,
        clip: CLIP,
        *,
        mug: Annotated[
            Mug,
            "how words and frames are compared; simple: the mean of their best scores, each found by a sharp softmax; "
            "full: words and frames are summed up with these weights and then compared; frame_text: frames with END "
            "alone; wti: DRL's maxima, with learned weights",
        ] = "simple",
        gamma: Annotated[
            float,
            "γ, what scores are multiplied by inside the softmaxes of --mug; not the temperature",
            Range(0, above=True),
            OnlyWith("mug", ("simple", "full", "frame_text")),
        ] = 100.0,
        mug_padding: Annotated[
            Padding,
            "padding words; masked: never count; released: change the scores of full and wti, as in the released code",
            OnlyWith("mug", ("full", "wti")),
        ] = "masked",
        **options: Any,
    ) -> None:
        super().__init__(clip, **options)
        self.mug, self.gamma, self.mug_padding = mug, gamma, mug_padding
        self.wti = WeightedInteraction(clip.architecture.embed_dim) if mug == "wti" else None

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> FrameRows:  # type: ignore[override]  # other rows than STAN's
        return FrameRows.without_padding(self.encode_frames(video, frame_mask), frame_mask)

    def encode_text(self, token_ids: Tensor) -> WordRows:
        """Embed the words of captions, int64 `[N,L]`; with `frame_text` END alone, as one word.

        Words after END are zero unless `mug_padding` is "released". No word sees a later one, so they change nothing.
        """
        text = self.clip.text
        if self.mug == "frame_text":
            return WordRows(text(token_ids).unsqueeze(1), torch.ones_like(token_ids[:, :1], dtype=torch.bool))
        x = text.embed(token_ids)
        for block in text.blocks:
            x = block(x, causal=text.causal)
        words, mask = text.pool(x), words_until_end(text.end_positions(token_ids), token_ids.shape[1])
        return WordRows(words if self.mug_padding == "released" else words.masked_fill(~mask.unsqueeze(-1), 0), mask)

    def prepare(self, rows: WordRows | FrameRows) -> Tokens:
        """Return words or frames of length 1, with their weights for `wti`."""
        return prepare_tokens(rows, self.mug_padding) if self.wti is None else self.wti(rows)

    def similarity(self, text: WordRows, video: FrameRows) -> Tensor:
        """Score every caption with every clip: fp32 `[N,B]`, sim / tau."""
        return self.similarity_of_prepared(self.prepare(text), self.prepare(video))

    def similarity_of_prepared(self, text: Tokens, video: Tokens) -> Tensor:
        scores = mug_similarity(text, video, self.mug, self.gamma, self.mug_padding)
        return self.clip.logit_scale.float().exp() * scores

    def dead_parameters(self) -> list[DeadParameters]:
        """Return those of STAN, and the biases of `wti`."""
        reason = "it adds the same to all words or frames, and softmax removes that"
        names = [name for name, _ in self.named_parameters() if name.startswith("wti.") and name.endswith(".bias")]
        return [*super().dead_parameters(), *(DeadParameters(name, reason) for name in names)]

    def released_name(self, name: str) -> str | None:
        return name.removeprefix("wti.") if name.startswith("wti.") else super().released_name(name)

    def released_tensors(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Do what STAN does; the layers of `wti`, which no published checkpoint has, are found in any module."""
        theirs = super().released_tensors(state_dict)
        return {_without_owner(key): tensor for key, tensor in theirs.items()}


def _without_owner(key: str) -> str:
    for layer in WEIGHTS:
        if f".{layer}" in key:
            return key[key.index(layer) :]
    return key
