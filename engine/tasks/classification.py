"""The step of classification: score clips with all classes, by class texts or by a linear head, and cross-entropy.

    text    s_ik = similarity(w_k, v_i), where w_k is the text of class k
    linear  s_ik = a_k . v_i sqrt(E) / |v_i| + b_k
    L       = mean over the clips i of -sum over k of y_ik log softmax(s_i)_k

Shapes: K classes, P texts of a class, n clips, L words, E joint embedding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataloaders.augmentation import mix_pairs
from engine.distributed import mean_over_processes
from engine.evaluate import evaluating
from engine.tasks.base import Part, TaskStep
from modules.methods import Method
from modules.rows import Rows, join, map_rows, tensors_of, to_float

AT_ONCE = 128  # frozen texts encoded at once
HEAD_DEVIATION = 0.01  # of a new head's weights, as in the heads of mmaction2


class ClassificationLoss(nn.Module):
    """Cross-entropy, and the linear head if there is one: then `head` is `[K,E]` with a bias `[K]`."""

    classes: Tensor

    def __init__(
        self, label_smoothing: float = 0.0, head: nn.Linear | None = None, unused: frozenset[str] = frozenset()
    ) -> None:
        super().__init__()
        self.label_smoothing, self.head = label_smoothing, head
        self.unused = unused  # names of the method's parameters that are frozen, because only texts need them
        if head is not None:  # a number that stands for the head's classes and their order; 0: not trained yet
            self.register_buffer("classes", torch.zeros(1, dtype=torch.int64))

    def start_fresh(self) -> None:
        """Draw the head anew."""
        assert self.head is not None
        nn.init.normal_(self.head.weight, std=HEAD_DEVIATION)
        nn.init.zeros_(self.head.bias)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of logits `[n,K]`; the target is int64 `[n]`, or probabilities `[n,K]`."""
        return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)


def new_loss(
    method: Method, classes: int | None, label_smoothing: float, max_frames: int, max_words: int
) -> ClassificationLoss:
    """Return the loss, with a new linear head for K `classes`; None: for class texts.

    With a head, CLIP's temperature and the parameters that only texts reach become frozen. The head's weights are from
    N(0, 0.01), its biases 0.
    """
    if classes is None:
        return ClassificationLoss(label_smoothing)
    visual, device = method.clip.visual, method.clip.logit_scale.device
    video = torch.zeros(1, max_frames, 3, visual.image_size, visual.image_size, device=device)
    frame_mask = torch.ones(1, max_frames, dtype=torch.bool, device=device)
    token_ids = torch.zeros(1, max_words, dtype=torch.int64, device=device)
    before = {name for name, _ in method.trainable_parameters()}
    row = freeze_text_side(method, video, frame_mask, token_ids)
    unused = frozenset(before - {name for name, _ in method.trainable_parameters()})
    loss = ClassificationLoss(label_smoothing, nn.Linear(row.shape[1], classes, device=device), unused)
    loss.start_fresh()
    return loss


def head_logits(head: nn.Linear, clips: Tensor) -> Tensor:
    """Score clips `[n,E]` with a head; fp32 `[n,K]`. A method's rows may have any length, so they get sqrt(E)."""
    with torch.autocast(clips.device.type, enabled=False):
        return head(math.sqrt(clips.shape[1]) * F.normalize(clips.float(), dim=-1))


def classifier_rows(method: Method, rows: Rows, texts: int) -> Rows:
    """Return the classifier of K classes with `texts` texts each, from their rows `[K P,...]`, in fp32.

    For a dot product it is the mean of the normalised rows of a class, `[K,E]`; the similarity normalises it again. For
    any other similarity it is all rows, whose scores `text_logits` averages. A single text's rows stay as they are.
    """
    if texts == 1 or not method.is_dot_product:
        return rows
    assert isinstance(rows, Tensor)
    return F.normalize(rows, dim=-1).unflatten(0, (-1, texts)).mean(dim=1)


def encode_in_blocks(method: Method, token_ids: Tensor) -> Rows:
    """Encode texts that need no gradient, int64 `[N,L]`, a few at once."""
    return join([method.encode_text(block) for block in token_ids.split(AT_ONCE)])


def text_logits(method: Method, classifier: Rows, clips: Rows, texts: int) -> Tensor:
    """Score clips with classes: the result of `classifier_rows` and the rows of n clips -> fp32 `[n,K]`."""
    scores = method.similarity(classifier, clips)
    return (scores if texts == 1 or method.is_dot_product else scores.unflatten(0, (-1, texts)).mean(dim=1)).T


@dataclass
class SharedClassifier:
    """The class texts of one step, encoded once for all parts of the batch.

    All parts but the last score with `values`, which have no graph, and add the gradient of their loss there to
    `gradient`. The last part scores with `rows`, and runs backward through them for all parts.
    """

    rows: Rows
    values: Rows = field(init=False)
    gradient: list[Tensor] = field(init=False)  # one for each floating-point tensor of `values`

    def __post_init__(self) -> None:
        self.values = map_rows(lambda t: t.detach().requires_grad_(t.is_floating_point()), self.rows)
        self.gradient = [torch.zeros_like(tensor) for tensor in _floating(self.values)]

    def collect(self, loss: Tensor) -> None:
        """Add the gradient of a part's loss at `values`."""
        gradients = torch.autograd.grad(loss, _floating(self.values), retain_graph=True, allow_unused=True)
        for total, own in zip(self.gradient, gradients, strict=True):
            if own is not None:
                total += own

    def of_the_other_parts(self) -> Tensor:
        """Return a scalar of value 0 whose gradient is that of the other parts' losses."""
        products = [(row * own).sum() for row, own in zip(_floating(self.rows), self.gradient, strict=True)]
        total = torch.stack(products).sum()
        return total - total.detach()


class ClassificationStep(TaskStep):
    """Computes the loss of the global batch from one process's clips.

    Args:
        loss: its head, if it has one, replaces the class texts.
        classes: K.
        token_ids: int64 `[K P,L]`, the texts of all classes, class by class; None with a head.
        mixes: whether batches have `mixing`, which says how pairs of clips are mixed.

    The texts are encoded in each step if training changes the text side, else only once.
    """

    items = "clips"
    loss: ClassificationLoss

    def __init__(
        self,
        method: Method,
        loss: ClassificationLoss,
        autocast: Callable[[], torch.autocast],
        classes: int,
        token_ids: Tensor | None,
        mixes: bool = False,
    ) -> None:
        super().__init__(method, loss, autocast)
        self.inputs = ("video", "frame_mask", "label", *(("mixing",) if mixes else ()))
        self.classes = classes
        self.token_ids = token_ids  # not a buffer, which DDP would send around in each step
        self.texts = 1 if token_ids is None else len(token_ids) // classes  # P
        self.learns_texts = token_ids is not None and has_gradient(method, token_ids)
        self._frozen: Rows | None = None
        self.scored_by_loss = loss.head is not None

    def logits(self, classifier: Rows | None, clips: Rows) -> Tensor:
        """Score n clips with the classes, by the result of `classifier_rows` (None with a head): fp32 `[n,K]`."""
        if self.loss.head is not None:
            assert isinstance(clips, Tensor)
            return head_logits(self.loss.head, clips)
        assert classifier is not None
        return text_logits(self.method, classifier, clips, self.texts)

    def forward(
        self,
        video: Tensor,
        frame_mask: Tensor,
        label: Tensor,
        mixing: Tensor | None = None,
        shared: SharedClassifier | None = None,
        is_last: bool = True,
    ) -> Tensor:
        """Return the loss of uint8 `[n,T,3,H,W]`, bool `[n,T]`, int64 `[n]`.

        `mixing`, float32 `[n,5]`, is that of `dataloaders.augmentation.mix_pairs`. `shared` and `is_last` are for a
        part of the batch, see `SharedClassifier`.
        """
        target = label
        if mixing is not None:
            video, target = mix_pairs(video, label, mixing, self.classes)
        encode = self.learns_texts and shared is None
        text, clips, extra = self.embed(video, frame_mask, self.token_ids if encode else None)
        classifier = None if text is None else self.classifier(text)
        if shared is not None:
            classifier = shared.rows if is_last else shared.values
        elif not self.learns_texts and self.token_ids is not None:
            classifier = self.frozen_classifier()
        loss = self.loss(self.logits(classifier, clips), target)
        loss = loss if extra is None else loss + extra
        if shared is not None and is_last:
            loss = loss + shared.of_the_other_parts()
        elif shared is not None:
            shared.collect(loss)
        return mean_over_processes(loss)

    def batch_note(self, batch_size: int) -> str:
        return f", {self.classes} classes"

    def in_parts(self, inputs: tuple[Tensor, ...], count: int) -> tuple[Tensor | None, list[Part]]:
        """Divide the clips; learned texts are encoded once for all parts.

        The loss is a mean over clips, so the parts' clips need nothing from each other. The texts' gradient is the sum
        over the parts of that at the texts' rows, run backward once, through the graph of the only encoding.
        """
        known_loss, parts = super().in_parts(inputs, count)
        if not self.learns_texts:
            return known_loss, parts
        assert self.token_ids is not None
        with self.autocast():
            shared = SharedClassifier(self.classifier(self.method.encode_text(self.token_ids)))
        last = len(parts) - 1
        mixing = () if "mixing" in self.inputs else (None,)
        return known_loss, [Part((*part.inputs, *mixing, shared, n == last)) for n, part in enumerate(parts)]

    @torch.no_grad()
    def frozen_classifier(self) -> Rows:
        """Return the classifier of a text side that training does not change; it is encoded at the first call."""
        if self._frozen is None:
            assert self.token_ids is not None
            with evaluating(self.method), self.autocast():
                self._frozen = self.classifier(encode_in_blocks(self.method, self.token_ids))
        return self._frozen

    def classifier(self, rows: Rows) -> Rows:
        """Return `classifier_rows` of the rows of all texts."""
        return classifier_rows(self.method, to_float(rows), self.texts)

    def parameter_groups(self, lr: float, coef_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the method's groups, and the head's at `lr`: its weights decay, its biases do not."""
        groups = self.method.parameter_groups(lr, coef_lr, weight_decay)
        if (head := self.loss.head) is not None:
            groups.append({"name": "head", "params": [head.weight], "lr": lr, "weight_decay": weight_decay})
            groups.append({"name": "head, no decay", "params": [head.bias], "lr": lr, "weight_decay": 0.0})
        return groups


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


def freeze_text_side(method: Method, video: Tensor, frame_mask: Tensor, token_ids: Tensor) -> Tensor:
    """Freeze what only scores with texts use: CLIP's temperature, and the parameters that reach no clip.

    Args:
        video: float `[1,T,3,H,W]`, of any value, as the others.
        frame_mask: bool `[1,T]`.
        token_ids: int64 `[1,L]`.

    Returns:
        The clip's row, float `[1,E]`.

    Raises:
        ValueError: a row is not one vector.
    """
    clips = _encoded(method, lambda: method.encode_video(video, frame_mask))
    if not isinstance(clips, Tensor) or clips.dim() != 2:
        raise ValueError(
            f"--classifier linear needs one vector of a clip, and {type(method).__name__} has several; pass "
            "--classifier text"
        )
    of_texts = reached_by(_encoded(method, lambda: method.encode_text(token_ids)))
    for parameter in {method.clip.logit_scale, *(of_texts - reached_by(clips))}:
        parameter.requires_grad_(False)
    return clips.detach()


def _floating(rows: Rows) -> list[Tensor]:
    return [tensor for tensor in tensors_of(rows) if tensor.is_floating_point()]
