"""What scores clips with classes: the texts of the classes, a bag of prompts, or a linear head.

    text    s_ik = similarity(w_k, v_i), where w_k is the text of class k
    bag     s_ik = 1/2 (mean over prompts of max over frames + mean over frames of max over prompts), `modules.bag`
    linear  s_ik = a_k . v_i sqrt(E) / |v_i| + b_k

Texts and bags are rows (`modules.rows`); a head is trained with the method. Scores are in fp32.

Shapes: K classes, P texts of a class, n clips, T frames, L words, E joint embedding.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.logger import log
from modules.bag import Bag, BagMean, bag_scores, frames_of
from modules.methods import Method
from modules.quoting import some
from modules.rows import Rows, join, tensors_of

AT_ONCE = 128  # frozen texts encoded at once


def head_logits(head: nn.Linear, clips: Tensor) -> Tensor:
    """Score clips `[n,E]` with a head; fp32 `[n,K]`. A method's rows may have any length, so they get sqrt(E)."""
    with torch.autocast(clips.device.type, enabled=False):
        return head(math.sqrt(clips.shape[1]) * F.normalize(clips.float(), dim=-1))


def bag_logits(method: Method, bag: Bag, clips: Rows, mean: BagMean) -> Tensor:
    """Score the rows of n clips with a bag at CLIP's temperature: fp32 `[n,K]`.

    Raises:
        ValueError: the rows are neither vectors of clips nor of their frames.
    """
    return bag_scores(*frames_of(clips), bag, method.clip.logit_scale.float().exp(), mean)


def classifier_rows(method: Method, rows: Rows, texts: int) -> Rows:
    """Return the classifier of K classes with `texts` texts each, from their rows `[K P,...]`, in fp32.

    If the method averages texts, it is the mean of the normalised rows of a class, `[K,E]`; the similarity normalises
    it again. Else it is all rows, whose scores `text_logits` averages. A single text's rows stay as they are.
    """
    if texts == 1 or not method.averages_texts():
        return rows
    assert isinstance(rows, Tensor)
    return F.normalize(rows, dim=-1).unflatten(0, (-1, texts)).mean(dim=1)


def encode_in_blocks(method: Method, token_ids: Tensor) -> Rows:
    """Encode texts that need no gradient, int64 `[N,L]`, a few at once."""
    return join([method.encode_text(block) for block in token_ids.split(AT_ONCE)])


def text_logits(method: Method, classifier: Rows, clips: Rows, texts: int) -> Tensor:
    """Score clips with classes: the result of `classifier_rows` and the rows of n clips -> fp32 `[n,K]`."""
    scores = method.similarity(classifier, clips)
    return (scores if texts == 1 or method.averages_texts() else scores.unflatten(0, (-1, texts)).mean(dim=1)).T


# ---- the parameters that only texts use -----------------------------------------------------------------------------


def has_gradient(method: Method, token_ids: Tensor) -> bool:
    """Return whether training changes the rows of texts, int64 `[N,L]`: whether a trained parameter reaches them."""
    return bool(reached_by(_encoded(method, lambda: method.encode_text(token_ids[:1]))))


@torch.enable_grad()
def _encoded(method: Method, encode: Callable[[], Rows]) -> Rows:
    """Return rows with their graph, without dropout, so that no random number is drawn."""
    was_training = method.training
    method.eval()
    try:
        return encode()
    finally:
        method.train(was_training)


def reached_by(rows: Rows) -> set[nn.Parameter]:
    """Return the parameters that require a gradient and that rows depend on, from the rows' graph."""
    waiting = [tensor.grad_fn for tensor in tensors_of(rows) if tensor.grad_fn is not None]
    found, seen = set(), set(waiting)
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found.add(node.variable)
        new = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= new
        waiting += new
    return found


def only_texts_use(
    method: Method, video: Tensor, frame_mask: Tensor, token_ids: Tensor
) -> tuple[set[nn.Parameter], Rows]:
    """Return the trained parameters that reach texts but no clip, and the clip's rows.

    CLIP's temperature, which reaches only scores, is not among them.

    Args:
        video: float `[1,T,3,H,W]`, of any value, as the others.
        frame_mask: bool `[1,T]`.
        token_ids: int64 `[1,L]`.
    """
    clips = _encoded(method, lambda: method.encode_video(video, frame_mask))
    return reached_by(_encoded(method, lambda: method.encode_text(token_ids))) - reached_by(clips), clips


def freeze_text_side(method: Method, video: Tensor, frame_mask: Tensor, token_ids: Tensor) -> Tensor:
    """Freeze what a linear head does not use: CLIP's temperature, and the parameters that reach texts but no clip.

    Takes the inputs of `only_texts_use` and returns the clip's row, float `[1,E]`.

    Raises:
        ValueError: a row is not one vector.
    """
    only_texts, clips = only_texts_use(method, video, frame_mask, token_ids)
    if not isinstance(clips, Tensor) or clips.dim() != 2:
        raise ValueError(
            f"--classifier linear needs one vector of a clip, and {type(method).__name__} has several; pass "
            "--classifier text"
        )
    for parameter in {method.clip.logit_scale, *only_texts}:
        parameter.requires_grad_(False)
    return clips.detach()


def freeze_text_encoder(method: Method, video: Tensor, frame_mask: Tensor, token_ids: Tensor) -> None:
    """Freeze what a bag of prompts does not use: the parameters that reach texts but no clip, and those of the method's
    own comparison of both, such as Mug-STAN's `wti`. CLIP's temperature is used.

    Takes the inputs of `only_texts_use`.

    Raises:
        ValueError: a bag cannot score the rows.
    """
    only_texts, clips = only_texts_use(method, video, frame_mask, token_ids)
    try:
        frames_of(clips)
    except ValueError as error:
        raise ValueError(
            f"--classifier bag needs one vector of a clip or of each of its frames, and {type(method).__name__} has "
            "others; pass --classifier text"
        ) from error
    scores = _encoded(method, lambda: method.similarity(method.encode_text(token_ids), clips))
    of_comparison = reached_by(scores) - only_texts - reached_by(clips) - {method.clip.logit_scale}
    if names := [name for name, own in method.trainable_parameters() if own in of_comparison]:
        log.warning(
            "--classifier bag compares frames with prompts by itself, so %d tensors by which %s compares clips with "
            "texts (%s) have no effect and are not trained", len(names), type(method).__name__, some(names),
        )  # fmt: skip
    for parameter in only_texts | of_comparison:
        parameter.requires_grad_(False)


def left_as_in_clip(method: Method, max_frames: int, max_words: int) -> frozenset[str]:
    """Return the names of CLIP's own trained parameters that only texts use.

    Training with --classifier bag leaves them as CLIP has them, and its checkpoints lack them.
    """
    only_texts, _ = only_texts_use(method, *method.blank_inputs(max_frames, max_words))
    return frozenset(
        name for name, own in method.trainable_parameters() if own in only_texts and method.is_pretrained(own)
    )
