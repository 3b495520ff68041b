"""Video-conditional prompting (section 3.3 of TC-CLIP): before the last block of the text tower, the learned tokens of
a text attend to the context tokens of a video, so that the text depends on the video.

    c <- c + MHA(LN c, LN_kv context),   c <- c + MLP(LN c)

The learned tokens follow START, and no word before them differs, so that the states c are the same for all texts. This
module therefore computes them once a video. What is left for a pair is attention of END to the video's tokens.

Shapes: N texts, L tokens of a text, B videos, K context tokens, P learned tokens, D width, E joint embedding.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.attention import Attention
from modules.clip import Block, TextTransformer
from modules.tc_clip.context import Context

OF_TEMPLATE = (320, 1125, 539, 320)  # "a photo of a" in CLIP's vocabulary
PROMPTS = len(OF_TEMPLATE)


class TextRows(NamedTuple):
    """N texts before the last block: `states` float `[N,L,D]`, zero after END, and `end` int64 `[N]`, END's place."""

    states: Tensor
    end: Tensor


class PromptGeneration(nn.Module):
    """A block whose queries are the learned tokens and whose keys and values are context tokens. It starts with the
    weights of the tower's last block.

    Context tokens lie in the joint space. A tower of another width gets a learned map, which no OpenAI CLIP needs.
    """

    def __init__(self, text: TextTransformer, joint: int, heads: int) -> None:
        super().__init__()
        last = text.blocks[-1]
        assert isinstance(last, Block)
        self.ln_1, self.ln_1_kv = copy.deepcopy(last.ln_1), copy.deepcopy(last.ln_1)
        self.attn = Attention(text.width, heads)
        self.attn.load_state_dict(last.attn.state_dict())
        self.ln_2, self.mlp = copy.deepcopy(last.ln_2), copy.deepcopy(last.mlp)
        self.widen = nn.Identity() if joint == text.width else nn.Linear(joint, text.width, bias=False)

    def forward(self, prompts: Tensor, context: Context) -> Tensor:
        """Return the learned tokens of each video: `[P,D]` and B contexts `[B,K,E]` -> `[B,P,D]`."""
        seen = self.attn.keys_values(self.ln_1_kv(self.widen(context.tokens)))
        query = self.attn.query(self.ln_1(prompts)).expand(len(context.tokens), -1, -1)
        c = prompts + self.attn.project_out(self.attn.attend(query, seen, context.mask[:, None, None]))
        return c + self.mlp(self.ln_2(c))


def with_prompts(text: TextTransformer, token_ids: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Embed texts with learned tokens after START: int64 `[N,L]`, `[P,D]` -> `[N,L+P,D]` and END's places `[N]`.

    A text that begins with "a photo of a" has them in the place of these words, any other before its first word.

    Raises:
        ValueError: if a text has no room left for them.
    """
    given, length = token_ids.shape[1], min(token_ids.shape[1] + PROMPTS, text.context_length)
    starts = torch.zeros_like(token_ids[:, :1], dtype=torch.bool)
    if given > PROMPTS:
        same = [token_ids[:, 1 + place] == word for place, word in enumerate(OF_TEMPLATE)]
        starts = torch.stack(same, dim=1).all(dim=1, keepdim=True)
    shift = torch.where(starts, 0, PROMPTS)  # [N,1]
    end = text.end_positions(token_ids) + shift.squeeze(1)
    if length < given + PROMPTS and not end.is_meta and bool((end >= length).any()):
        raise ValueError(
            f"a text leaves no room for the {PROMPTS} learned tokens among the {length} of this CLIP: lower --max_words"
        )
    places = torch.arange(length, device=token_ids.device)
    source = (places - shift).clamp(min=0, max=given - 1)  # of START and of the words; the learned tokens' is of no use
    ids = token_ids.gather(1, source).masked_fill(places > end.unsqueeze(1), 0)
    words = text.token_embedding(ids)
    learned = prompts.to(words.dtype).expand(len(words), -1, -1)
    embedded = torch.cat([words[:, :1], learned, words[:, 1 + PROMPTS :]], dim=1)
    return embedded + text.positional_embedding[:length], end


def states_before_last(text: TextTransformer, embedded: Tensor) -> Tensor:
    """Run all blocks but the last: `[N,L,D]` -> `[N,L,D]`."""
    for block in list(text.blocks)[:-1]:
        embedded = block(embedded, causal=True)
    return embedded


def prompt_states(text: TextTransformer, start: Tensor, prompts: Tensor) -> Tensor:
    """Return the states of the learned tokens before the last block, which only START precedes: `[P,D]`.

    `start` is the embedding of START, `[D]`.
    """
    embedded = torch.cat([start.unsqueeze(0), prompts]) + text.positional_embedding[: 1 + PROMPTS]
    return states_before_last(text, embedded.unsqueeze(0))[0, 1:]


def finish(text: TextTransformer, rows: TextRows, prompts: Tensor) -> Tensor:
    """Run the last block for every pair and embed its END: N texts and the learned tokens of B videos `[B,P,D]`
    -> `[N,B,E]`, not normalised.

    END attends to the words of its text, and to the tokens of the video. The words' share is summed up before videos
    come in: a softmax over the logsumexp of words and P logits is that over all of them.
    """
    block = text.blocks[-1]
    assert isinstance(block, Block)
    heads, attn = block.attn.heads, block.attn
    x, end = rows.states, rows.end
    index = torch.arange(len(x), device=x.device)
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in attn.project(block.ln_1(x)))
    q = q[index, end] / math.sqrt(q.shape[-1])  # [N,h,d]
    places = torch.arange(x.shape[1], device=x.device)
    words = ((places == 0) | (places > PROMPTS)) & (places <= end.unsqueeze(1))
    logits = torch.einsum("nhd,nlhd->nhl", q, k).masked_fill(~words.unsqueeze(1), -torch.inf)
    gathered = torch.einsum("nhl,nlhd->nhd", logits.softmax(dim=-1), v)
    pk, pv = (part.unflatten(-1, (heads, -1)) for part in block.context(prompts))  # [B,P,h,d]
    of_prompts = torch.einsum("nhd,bphd->nbhp", q, pk)
    of_words = logits.logsumexp(dim=-1)[:, None, :, None].expand(-1, len(prompts), -1, -1)
    shares = torch.cat([of_words, of_prompts], dim=-1).softmax(dim=-1)  # [N,B,h,1+P]
    out = shares[..., :1] * gathered.unsqueeze(1) + torch.einsum("nbhp,bphd->nbhd", shares[..., 1:], pv)
    y = x[index, end].unsqueeze(1) + attn.project_out(out.flatten(2))
    return text.pool(block.feed_forward(y))
