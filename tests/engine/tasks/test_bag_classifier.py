"""Training with a bag of prompts: what is frozen, parts of a batch, processes, and methods with rows of frames."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import process_group
from engine.precision import autocast_for
from engine.tasks.classification import ClassificationLoss, ClassificationStep, new_loss
from engine.tasks.classifiers import classifier_rows, left_as_in_clip, text_logits
from modules.bag import Bag, bag_scores, make_bag
from modules.frame_rows import FrameRows
from modules.methods import Method, build_method
from modules.similarity import unit
from tests.engine.tasks.test_classification import (
    CLASSES,
    assert_same_gradient,
    clips,
    gradient,
    normalised,
    texts,
)
from tests.engine.tasks.test_token_level import WordsAndFrames
from tests.processes import run_as_group
from tests.small_bags import some_features
from tests.tiny import tiny_batch, tiny_clip

FP32 = autocast_for("fp32", torch.device("cpu"))


class Frames(Method):
    """Scores a text by the mean over frames of the cosine; its vision tower is trained."""

    is_dot_product = False

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> FrameRows:
        return FrameRows(self.clip.visual(video.flatten(0, 1)).unflatten(0, video.shape[:2]), frame_mask.bool())

    def similarity(self, text: Tensor, video: FrameRows) -> Tensor:
        cosines = torch.einsum("ne,bte->nbt", unit(text), torch.nn.functional.normalize(video.frames, dim=-1))
        scores = cosines.masked_fill(~video.frame_mask, 0).sum(2) / video.frame_mask.sum(1)
        return self.clip.logit_scale.exp() * scores

    def averages_texts(self) -> bool:
        return True


def a_method(name: str) -> Method:
    torch.manual_seed(1)
    options = {"prompt_dropout": 0.0, "n_regions": 2} if name == "stop" else {}
    return (Frames(tiny_clip()) if name == "frames" else build_method(name, tiny_clip(), **options)).train()


def a_bag() -> Bag:
    return make_bag(some_features(CLASSES, 7), torch.arange(7) < torch.tensor([7, 3, 5, 7, 2])[:, None])


def a_step(name: str, mean: str = "padded", mixes: bool = False) -> ClassificationStep:
    method = a_method(name)
    loss = new_loss(method, None, 0.1, 4, 8, with_bag=True)
    return ClassificationStep(method, loss, FP32, CLASSES, a_bag(), mixes, mean)


@pytest.mark.parametrize("mean", ["padded", "masked"])
@pytest.mark.parametrize("name", ["vpt", "frames"])
def test_the_loss_and_its_scores(name, mean):
    """A method of one vector a clip has one frame to score, and one with rows of frames has them all."""
    step = a_step(name, mean)
    video, frame_mask, label = clips()
    with torch.no_grad():
        rows = step.method.encode_video(normalised(step.method, video), frame_mask)
        frames, real = rows if name == "frames" else (rows[:, None], torch.ones(8, 1, dtype=torch.bool))
        expected = bag_scores(frames, real, a_bag(), step.method.clip.logit_scale.exp(), mean)
        found = step.logits(step.frozen_classifier(), rows)
    torch.testing.assert_close(found, expected)
    loss = torch.nn.functional.cross_entropy(expected, label, label_smoothing=0.1)
    assert step(video, frame_mask, label).item() == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "frozen", "trained"),
    [
        ("clip4clip", "clip.text.", "clip.visual."),
        ("stop", "text_prompts", "intra."),
        ("frames", "clip.text.", "clip.v"),
    ],
)
def test_a_bag_freezes_what_only_texts_use_but_not_the_temperature(name, frozen, trained):
    before = {n for n, _ in a_method(name).trainable_parameters()}
    step = a_step(name)
    after = {n for n, _ in step.method.trainable_parameters()}
    assert step.loss.unused == before - after
    assert step.loss.unused
    assert all(n.startswith(frozen) for n in step.loss.unused)
    assert any(n.startswith(trained) for n in after)
    assert ("clip.logit_scale" in after) == ("clip.logit_scale" in before)
    step(*clips()).backward()
    assert all(p.grad is not None for _, p in step.trainable_parameters())
    # What was frozen and came with CLIP is what a checkpoint lacks and CLIP has.
    own = {n for n in step.loss.unused if n.startswith("clip.")}
    assert left_as_in_clip(a_method(name), 4, 8) == own


def test_a_method_whose_rows_are_tokens_is_refused():
    with pytest.raises(
        ValueError, match="--classifier bag needs one vector of a clip or of each of its frames, and Wor"
    ):
        new_loss(WordsAndFrames(tiny_clip()), None, 0.0, 4, 8, with_bag=True)


def test_what_only_the_method_compares_with_is_frozen_and_named(caplog):
    method = build_method("mug_stan", tiny_clip(), mug="wti", stan_layers=1)
    loss = new_loss(method, None, 0.0, 4, 8, with_bag=True)
    assert "4 tensors by which MugSTAN compares clips with texts (wti.text_weight_fc.weight, " in caplog.text
    assert "have no effect and are not trained" in caplog.text
    assert not any(parameter.requires_grad for parameter in method.wti.parameters())
    assert {name for name in loss.unused if not name.startswith("clip.")} == {
        f"wti.{name}" for name, _ in method.wti.named_parameters()
    }


def test_parts_give_the_gradient_of_the_whole_batch():
    step = a_step("frames")
    loss, expected = gradient(step, clips(), 1)
    found_loss, found = gradient(step, clips(), 4)
    assert found_loss == pytest.approx(loss, abs=1e-5)
    assert "method.clip.logit_scale" in expected
    assert_same_gradient(found, expected)


def save_gradients(folder: Path) -> None:
    """Save the gradient of 12 clips, shared among the processes of a group."""
    with process_group() as process:
        rank, world_size = process.rank, process.world_size
        step = a_step("frames", "masked")
        model = DistributedDataParallel(step) if world_size > 1 else step
        loss = model(*(tensor.chunk(world_size)[rank] for tensor in clips(12)))
        loss.backward()
        grads = {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}
    torch.save((loss.item(), grads), folder / f"{world_size}_{rank}.pt")


def test_processes_give_the_gradient_of_one(tmp_path):
    save_gradients(tmp_path)
    run_as_group(2, save_gradients, tmp_path)
    loss, expected = torch.load(tmp_path / "1_0.pt")
    for rank in (0, 1):
        found_loss, found = torch.load(tmp_path / f"2_{rank}.pt")
        assert found_loss == pytest.approx(loss, abs=1e-5)
        assert_same_gradient(found, expected)


def test_several_texts_of_a_class_are_brought_together_as_the_method_says():
    """Rows of frames, and texts of one vector: W_k is the mean of the normalised texts, though frames stay apart."""
    method = a_method("frames")
    video, frame_mask, _ = tiny_batch(batch=3)
    with torch.no_grad():
        text, videos = method(video, frame_mask, texts(2))
        matrix = classifier_rows(method, text, 2)
        pairs = unit(text).view(CLASSES, 2, -1).mean(dim=1)
        torch.testing.assert_close(matrix, pairs)
        found = text_logits(method, matrix, videos, 2)
        torch.testing.assert_close(found, method.similarity(pairs, videos).T)
    step = ClassificationStep(method, ClassificationLoss(), FP32, CLASSES, texts(2))
    assert step(*clips()).isfinite()
