"""The step of classification: its gradient in parts and processes, how often texts are encoded, and the linear head."""

import copy
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from dataloaders.augmentation import Augmentation, mix_pairs
from engine.compiling import compile_forward
from engine.distributed import process_group
from engine.precision import autocast_for
from engine.tasks.classification import (
    ClassificationLoss,
    ClassificationStep,
    classifier_rows,
    freeze_text_side,
    head_logits,
    new_loss,
    text_logits,
)
from engine.tasks.contrastive import ContrastiveStep
from modules.backbones import ARCHITECTURES
from modules.clip import CLIP, Block
from modules.methods import Method, build_method
from modules.operations import count_operations
from modules.rows import take
from tests.engine.tasks.test_token_level import WordsAndFrames
from tests.processes import run_as_group
from tests.tiny import tiny_batch, tiny_clip

CPU = torch.device("cpu")
FP32 = autocast_for("fp32", CPU)
CLASSES = 5
METHODS = {
    "clip4clip": {},
    "vpt": {"text_prompt_length": 0},
    "stop": {"prompt_dropout": 0.0, "n_regions": 2},
    "dgl": {"max_frames": 4},
}
LEARNS_TEXTS = {"clip4clip": True, "vpt": False, "stop": True, "dgl": True}


class WithDropout(Method):
    """Full tuning with dropout on the rows of texts."""

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        return self.clip.visual(video.flatten(0, 1)).unflatten(0, video.shape[:2]).mean(dim=1)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        return F.dropout(super().encode_text(token_ids), 0.5, self.training)


BUILD = {name: partial(build_method, name, **options) for name, options in METHODS.items()}
BUILD |= {"token level": WordsAndFrames, "with dropout": WithDropout}


def a_method(name: str) -> Method:
    torch.manual_seed(1)
    return BUILD[name](tiny_clip()).train()


def clips(n: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Return uint8 video `[n,T,3,H,W]`, bool `[n,T]` and int64 labels `[n]`."""
    video, frame_mask, _ = tiny_batch(seed=3, batch=n)
    label = torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(5))
    return (video.clamp(0, 1) * 255).to(torch.uint8), frame_mask, label


def texts(per_class: int = 1) -> Tensor:
    return tiny_batch(seed=4, batch=CLASSES * per_class)[2]


def a_step(method: Method, per_class: int = 1, label_smoothing: float = 0.0, mixes: bool = False) -> ClassificationStep:
    return ClassificationStep(method, ClassificationLoss(label_smoothing), FP32, CLASSES, texts(per_class), mixes)


def gradient(step: ClassificationStep, inputs: tuple[Tensor, ...], count: int) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradient as `Training.backward` makes them, from one pass or from `count` parts."""
    step.zero_grad()
    torch.manual_seed(7)
    if count == 1:
        loss = step(*inputs)
        loss.backward()
        losses = [loss.detach()]
    else:
        known, parts = step.in_parts(inputs, count)
        assert known is None
        losses = []
        for part in parts:
            loss = step(*part.inputs) / count
            loss.backward()
            losses.append(loss.detach())
    return float(sum(losses)), {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}


def assert_same_gradient(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(
            found[name], value, atol=2e-5 * scale + 1e-9, rtol=0, msg=lambda m, n=name: f"{n} {m}"
        )


class Counted:
    """Counts the texts that a method encodes."""

    def __init__(self, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[int] = []
        encode = method.encode_text

        def counted(token_ids: Tensor) -> Tensor:
            self.calls.append(len(token_ids))
            return encode(token_ids)

        monkeypatch.setattr(method, "encode_text", counted)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", [*METHODS, "token level", "with dropout"])
def test_parts_give_the_gradient_of_the_whole_batch(name, recompute):
    """Also with dropout on the texts: all parts share one draw, that of the undivided batch. Also with blocks that
    --activation_checkpointing recomputes."""
    step = a_step(a_method(name), 2 if recompute else 1, label_smoothing=0.1)
    for block in step.modules():
        if isinstance(block, Block):
            block.recompute = recompute
    loss, expected = gradient(step, clips(), 1)
    for count in (2, 4):
        found_loss, found = gradient(step, clips(), count)
        assert found_loss == pytest.approx(loss, abs=1e-5)
        assert_same_gradient(found, expected)


def test_a_scaled_loss_scales_the_gradient_of_all_parts():
    """fp16 scales the loss of each part; the shared texts collect gradients before that."""
    step, inputs = a_step(a_method("stop")), clips()
    _, expected = gradient(step, inputs, 2)
    step.zero_grad()
    for part in step.in_parts(inputs, 2)[1]:
        (2.0**12 * step(*part.inputs) / 2).backward()
    found = {n: p.grad / 2**12 for n, p in step.named_parameters() if p.grad is not None}
    assert_same_gradient(found, expected)


def test_the_loss_by_hand():
    method = a_method("clip4clip")
    step, (video, frame_mask, label) = a_step(method, 2, label_smoothing=0.2), clips(4)
    rows = method.encode_text(texts(2))
    videos = method.encode_video(normalised(method, video), frame_mask)
    expected = 0.0
    for i in range(4):
        scores = []
        for k in range(CLASSES):
            of_class = torch.stack([rows[2 * k + p] / rows[2 * k + p].norm() for p in range(2)]).mean(dim=0)
            cosine = of_class @ videos[i] / (of_class.norm() * videos[i].norm())
            scores.append(float(cosine.detach() * method.clip.logit_scale.detach().exp()))
        shares = torch.tensor(scores).log_softmax(0)
        target = torch.full((CLASSES,), 0.2 / CLASSES)
        target[label[i]] += 0.8
        expected -= float((target * shares).sum()) / 4
    assert step(video, frame_mask, label).item() == pytest.approx(expected, abs=1e-4)


def normalised(method: Method, video: Tensor) -> Tensor:
    statistics = method.clip.backbone.preprocessing
    mean, std = (torch.tensor(values)[:, None, None] for values in (statistics.mean, statistics.std))
    return (video.float() / 255 - mean) / std


def test_one_template_is_the_row_as_it_is():
    rows = torch.randn(3, 8)
    assert classifier_rows(a_method("vpt"), rows, 1) is rows


def test_token_level_scores_are_averaged_over_templates():
    method = a_method("token level")
    video, frame_mask, token_ids = tiny_batch(batch=6)
    with torch.no_grad():
        text, videos = method(video, frame_mask, token_ids)
        found = text_logits(method, classifier_rows(method, text, 2), videos, 2)
        for k in range(3):
            pair = [method.similarity(take(text, torch.tensor([2 * k + p]).numpy()), videos)[0] for p in range(2)]
            torch.testing.assert_close(found[:, k], (pair[0] + pair[1]) / 2)


@pytest.mark.parametrize("name", METHODS)
def test_texts_are_encoded_once_a_step_if_they_learn_and_else_once(name, monkeypatch):
    step = a_step(a_method(name), 2)
    assert step.learns_texts is LEARNS_TEXTS[name]
    counted = Counted(step.method, monkeypatch)
    monkeypatch.setattr(type(step.method), "forward", Method.forward)  # dgl's own does not call encode_text
    for count in (1, 4, 2):
        gradient(step, clips(), count)
    assert counted.calls == [2 * CLASSES] * (3 if step.learns_texts else 1)


def test_many_frozen_texts_are_encoded_a_few_at_once(monkeypatch):
    method = a_method("vpt")
    token_ids = texts().repeat(60, 1)  # 300 classes
    step = ClassificationStep(method, ClassificationLoss(), FP32, 300, token_ids)
    whole = method.encode_text(token_ids)
    counted = Counted(method, monkeypatch)
    torch.testing.assert_close(step.frozen_classifier(), whole)
    assert step.frozen_classifier() is step.frozen_classifier()
    assert counted.calls == [128, 128, 44]


def operations(step: nn.Module, *inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        step(*inputs).backward()
    return counter.get_total_flops()


def test_a_frozen_text_side_costs_no_more_than_retrieval():
    """Count the operations of forward and backward, after the first step."""
    video, frame_mask, label = clips()
    retrieval = ContrastiveStep(a_method("vpt"), FP32)
    step = a_step(a_method("vpt"), per_class=4)
    operations(step, video, frame_mask, label)
    expected = operations(retrieval, video, frame_mask, tiny_batch(batch=8)[2])
    assert operations(step, video, frame_mask, label) < expected


def test_learned_texts_of_ucf101_cost_less_than_a_twentieth():
    """A step of 64 clips of 8 frames encodes 64 captions in retrieval and 101 texts here (ViT-B/32, forward)."""
    with torch.device("meta"):
        method = build_method("clip4clip", CLIP(ARCHITECTURES["ViT-B/32"]))
    method.eval().requires_grad_(False)
    both = count_operations(method, 8, 32)
    with FlopCounterMode(display=False) as counter:
        method.encode_text(torch.zeros(1, 32, dtype=torch.int64, device="meta"))
    text = counter.get_total_flops()
    assert text > 0
    assert 64 * both + (101 - 64) * text < 1.05 * 64 * both


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vpt", "clip4clip"])
def test_compiled_steps_equal_eager_ones(name, monkeypatch):
    """Check a frozen and a learned text side, undivided and in parts, on graphs that run on torch's eager kernels."""
    expected = [gradient(a_step(a_method(name)), clips(), count) for count in (1, 2)]
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    step = a_step(a_method(name))
    compile_forward(step.method)
    for count, (loss, own) in zip((1, 2), expected, strict=True):
        found_loss, found = gradient(step, clips(), count)
        assert found_loss == pytest.approx(loss, abs=1e-5)
        assert_same_gradient(found, own)


# The linear head.


@pytest.mark.parametrize(
    ("name", "frozen", "trained"),
    [
        ("clip4clip", "clip.text.", "clip.visual."),
        ("stop", "text_prompts", "intra."),
        ("vpt", "clip.text.", "prompts"),
        ("dgl", "latent.nothing", "global_prompts"),
    ],
)
def test_a_head_freezes_what_only_texts_use(name, frozen, trained):
    method = a_method(name)
    before = {n for n, _ in method.trainable_parameters()}
    loss = new_loss(method, CLASSES, 0.0, 4, 8)
    assert loss.head.weight.shape == (CLASSES, 24)
    after = {n for n, _ in method.trainable_parameters()}
    assert "clip.logit_scale" not in after
    assert not any(n.startswith(frozen) for n in after)
    assert any(n.startswith(trained) for n in after)
    assert after <= before
    # Everything that is left has a part in the loss, and what was frozen has none.
    step = ClassificationStep(method, loss, FP32, CLASSES, None)
    step(*clips()).backward()
    assert all(p.grad is not None for _, p in step.trainable_parameters())
    for n in before - after:
        method.get_parameter(n).requires_grad_(True)
    step.zero_grad()
    step(*clips()).backward()
    assert all(method.get_parameter(n).grad is None for n in before - after)


def test_the_search_for_text_parameters_draws_no_random_number():
    method = build_method("stop", tiny_clip(), n_regions=2).train()
    state = torch.get_rng_state()
    video, frame_mask, token_ids = tiny_batch(batch=1)
    assert freeze_text_side(method, video, frame_mask, token_ids).shape == (1, 24)
    assert torch.equal(torch.get_rng_state(), state)
    assert method.training


def test_a_head_by_hand():
    method = a_method("vpt")
    loss = new_loss(method, CLASSES, 0.0, 4, 8)
    nn.init.normal_(loss.head.bias)
    rows = 30 * torch.randn(3, 24)
    for n in range(3):
        unit = rows[n] / rows[n].norm() * 24**0.5
        torch.testing.assert_close(head_logits(loss.head, rows)[n], loss.head.weight @ unit + loss.head.bias)


def test_a_heads_weights_decay_and_its_biases_do_not():
    method = a_method("vpt")
    step = ClassificationStep(method, new_loss(method, CLASSES, 0.0, 4, 8), FP32, CLASSES, None)
    groups = {group["name"]: group for group in step.parameter_groups(1e-3, 0.1, 0.2)}
    assert groups["head"] == {"name": "head", "params": [step.loss.head.weight], "lr": 1e-3, "weight_decay": 0.2}
    assert groups["head, no decay"]["weight_decay"] == 0
    names = [name for name, _ in step.trainable_parameters()]
    assert names[-2:] == ["loss.head.weight", "loss.head.bias"]
    assert sum(len(group["params"]) for group in groups.values()) == len(names)


def test_a_head_needs_one_vector():
    with pytest.raises(ValueError, match="--classifier linear needs one vector of a clip, and WordsAndFrames has sev"):
        new_loss(a_method("token level"), CLASSES, 0.0, 4, 8)


# Mixed clips.


@pytest.mark.parametrize("head", [False, True])
def test_mixed_clips_have_soft_targets(head):
    method = a_method("vpt")
    loss = new_loss(method, CLASSES if head else None, 0.0, 4, 8)
    step = ClassificationStep(method, loss, FP32, CLASSES, None if head else texts(), mixes=True)
    assert step.inputs == ("video", "frame_mask", "label", "mixing")
    video, frame_mask, label = clips()
    augmentation, generator = Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0), np.random.default_rng(0)
    mixing = torch.stack([augmentation.draw_mixing(32, generator) for _ in range(8)])
    whole, expected = gradient(step, (video, frame_mask, label, mixing), 1)
    mixed, target = mix_pairs(video, label, mixing, CLASSES)
    _, clip_rows, _ = step.embed(mixed, frame_mask, None)
    logits = step.logits(None if head else step.frozen_classifier(), clip_rows)
    assert whole == pytest.approx(float(-(target * logits.detach().log_softmax(1)).sum(1).mean()), abs=1e-5)
    assert_same_gradient(gradient(step, (video, frame_mask, label, mixing), 4)[1], expected)


# Several processes.


def save_gradients(name: str, folder: Path) -> None:
    """Save the gradient of 12 clips, shared among the processes of a group, undivided and in two parts."""
    with process_group() as process:
        rank, world_size = process.rank, process.world_size
        step = a_step(a_method(name), 2)
        model = DistributedDataParallel(step) if world_size > 1 else step
        share = tuple(tensor.chunk(world_size)[rank] for tensor in clips(12))
        saved = []
        for count in (1, 2):
            step.zero_grad()
            if count == 1:
                losses = [model(*share)]
                losses[0].backward()
            else:
                losses = []
                for number, part in enumerate(step.in_parts(share, count)[1]):
                    waits = world_size > 1 and number < count - 1
                    with model.no_sync() if waits else torch.enable_grad():
                        losses.append(model(*part.inputs) / count)
                        losses[-1].backward()
            grads = {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}
            saved.append((sum(loss.item() for loss in losses), grads))
    torch.save(saved, folder / f"{world_size}_{rank}.pt")


def test_one_two_and_three_processes(tmp_path):
    save_gradients("stop", tmp_path)
    for world_size in (2, 3):
        run_as_group(world_size, save_gradients, "stop", tmp_path)
    (loss, expected), _ = torch.load(tmp_path / "1_0.pt")
    for path in tmp_path.glob("*.pt"):
        for found_loss, found in torch.load(path):
            assert found_loss == pytest.approx(loss, abs=1e-5)
            assert_same_gradient(found, expected)


def test_a_step_can_be_copied_and_moved():
    """Benchmarks copy methods; the step has no tensor that would then be left behind in a buffer."""
    step = copy.deepcopy(a_step(a_method("vpt")))
    assert dict(step.named_buffers()).keys() == dict(step.method.named_buffers(prefix="method")).keys()
