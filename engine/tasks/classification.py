"""The step of classification: score clips with all classes (`engine.tasks.classifiers`), and cross-entropy.

    L = mean over the clips i of -sum over k of y_ik log softmax(s_i)_k

Shapes: K classes, P texts of a class, n clips, L words, E joint embedding.
"""

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
from engine.tasks.classifiers import (
    bag_logits,
    classifier_rows,
    encode_in_blocks,
    freeze_text_encoder,
    freeze_text_side,
    has_gradient,
    head_logits,
    text_logits,
)
from modules.bag import Bag, BagMean
from modules.methods import Method
from modules.rows import Rows, map_rows, tensors_of, to_float

HEAD_DEVIATION = 0.01  # of a new head's weights, as in the heads of mmaction2


class ClassificationLoss(nn.Module):
    """Cross-entropy, and the linear head if there is one: then `head` is `[K,E]` with a bias `[K]`.

    It is the loss on a backbone that was trained with sigmoids too, because one of K classes is right. Scores then have
    that backbone's `logit_scale`; its `logit_bias`, the same for all classes, cancels.
    """

    classes: Tensor

    def __init__(
        self, label_smoothing: float = 0.0, head: nn.Linear | None = None, unused: frozenset[str] = frozenset()
    ) -> None:
        super().__init__()
        self.label_smoothing, self.head = label_smoothing, head
        self.unused = unused  # names of the method's parameters that need not be in a checkpoint, see `load_checkpoint`
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
    method: Method,
    classes: int | None,
    label_smoothing: float,
    max_frames: int,
    max_words: int,
    with_bag: bool = False,
) -> ClassificationLoss:
    """Return the loss: with a new linear head for K `classes`, or without one.

    With a head or `with_bag` the parameters that only texts reach become frozen; with a head also CLIP's temperature,
    and with a bag those that only the method's own similarity uses.
    The head's weights are from N(0, 0.01), its biases 0.
    """
    if classes is None and not with_bag:
        return ClassificationLoss(label_smoothing)
    inputs, head = method.blank_inputs(max_frames, max_words), None
    before = {name for name, _ in method.trainable_parameters()}
    if classes is None:
        freeze_text_encoder(method, *inputs)
    else:
        row = freeze_text_side(method, *inputs)
        head = nn.Linear(row.shape[1], classes, device=row.device)
    unused = frozenset(before - {name for name, _ in method.trainable_parameters()})
    loss = ClassificationLoss(label_smoothing, head, unused)
    if head is not None:
        loss.start_fresh()
    return loss


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
        texts: int64 `[K P,L]`, the texts of all classes, class by class; or the bag of their prompts; None with a head.
        mixes: whether batches have `mixing`, which says how pairs of clips are mixed.
        bag_mean: see `modules.bag.bag_scores`.

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
        texts: Tensor | Bag | None,
        mixes: bool = False,
        bag_mean: BagMean = "padded",
    ) -> None:
        super().__init__(method, loss, autocast)
        self.inputs = ("video", "frame_mask", "label", *(("mixing",) if mixes else ()))
        self.classes = classes
        # Neither is a buffer, which DDP would send around in each step.
        self.bag = texts if isinstance(texts, Bag) else None
        self.token_ids = None if isinstance(texts, Bag) else texts
        self.bag_mean = bag_mean
        self.texts = 1 if self.token_ids is None else len(self.token_ids) // classes  # P
        self.learns_texts = self.token_ids is not None and has_gradient(method, self.token_ids)
        self._frozen: Rows | None = None
        self.scored_by_loss = loss.head is not None

    def logits(self, classifier: Rows | None, clips: Rows) -> Tensor:
        """Score n clips by a bag or the result of `classifier_rows`, or None with a head: fp32 `[n,K]`."""
        if self.loss.head is not None:
            assert isinstance(clips, Tensor)
            return head_logits(self.loss.head, clips)
        assert classifier is not None
        if isinstance(classifier, Bag):
            return bag_logits(self.method, classifier, clips, self.bag_mean)
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
        elif not self.learns_texts and self.loss.head is None:
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
        """Return the bag, or the classifier of a text side that training does not change, encoded at the first call."""
        if self.bag is not None:
            return self.bag
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


def _floating(rows: Rows) -> list[Tensor]:
    return [tensor for tensor in tensors_of(rows) if tensor.is_floating_point()]
