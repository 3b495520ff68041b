"""A method's own term in the loss: the same in one batch, in parts and on several processes, and in whole runs."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from engine import run as engine_run
from engine.compiling import compile_forward
from engine.distributed import process_group
from engine.precision import autocast_for
from engine.tasks.classification import ClassificationLoss, ClassificationStep
from engine.tasks.contrastive import ContrastiveStep
from main_task_recognition import main
from modules.clip_weights import to_openai_keys
from modules.methods import STDD, build_method
from tests.processes import run_as_group
from tests.tiny import tiny_batch, tiny_clip
from tests.training_runs import interrupt_after

FP32 = autocast_for("fp32", torch.device("cpu"))
DISTILL = ["--method", "stdd", "--distill", "intended", "--lr", "1e-3", "--coef_lr", "1"]
N = 4


def a_method(temporal: str = "none", distill: str = "intended", seed: int = 1) -> STDD:
    """Return a method whose tower has moved away from the frozen CLIP."""
    method = build_method("stdd", tiny_clip(), temporal=temporal, distill=distill, distill_ratio=0.5).train()
    assert isinstance(method, STDD)
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, parameter in method.trainable_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return method


def clips() -> tuple[Tensor, Tensor, Tensor]:
    video, frame_mask, token_ids = tiny_batch(batch=N)
    return video.clamp(0, 1).mul(255).to(torch.uint8), frame_mask, token_ids


def a_step(task: str, method: STDD) -> tuple[ContrastiveStep | ClassificationStep, tuple[Tensor, ...]]:
    """Return a task's step, and the inputs of a batch of four."""
    video, frame_mask, token_ids = clips()
    if task == "retrieval":
        return ContrastiveStep(method, FP32), (video, frame_mask, token_ids)
    step = ClassificationStep(method, ClassificationLoss(), FP32, N, token_ids)
    return step, (video, frame_mask, torch.tensor([2, 0, 1, 2]))


def gradients(method: STDD) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in method.trainable_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        tolerance = 1e-5 * max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[name], gradient, atol=tolerance, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("task", ["retrieval", "recognition"])
def test_the_term_is_added_to_the_loss(task):
    method, plain = a_method(), a_method(distill="none")
    plain.load_state_dict(method.state_dict(), strict=False)
    whole, inputs = a_step(task, method)
    without, _ = a_step(task, plain)
    *_, extra = whole.embed(*inputs[:2], None)
    assert extra is not None
    torch.testing.assert_close(whole(*inputs), without(*inputs) + extra)


@pytest.mark.parametrize("task", ["retrieval", "recognition"])
@pytest.mark.parametrize("temporal", ["none", "stcross_attend"])
def test_parts_give_the_gradient_of_the_whole_batch(task, temporal):
    """Check the value too. With STCA, both passes of a part must draw the same masks."""
    method = a_method(temporal)
    step, inputs = a_step(task, method)
    torch.manual_seed(3)
    known_loss, parts = step.in_parts(inputs, 2)
    states, losses = [torch.get_rng_state()], []
    for part in parts:
        if part.random_state is not None:
            torch.set_rng_state(part.random_state)
        losses.append(step(*part.inputs) / (1 if known_loss is not None else 2))
        losses[-1].backward()
        states.append(torch.get_rng_state())
    loss = sum(part.item() for part in losses) if known_loss is None else known_loss.item()
    found = gradients(method)
    method.zero_grad()
    if temporal == "none":
        whole = step(*inputs)
    else:  # the masks of the parts, one after the other
        torch.manual_seed(3)
        pieces = zip(*(tensor.chunk(2) for tensor in inputs), strict=True)
        whole = whole_of_pieces(step, [step.embed(*piece[:2], None) for piece in pieces], inputs[2])
    whole.backward()
    assert loss == pytest.approx(whole.item(), abs=1e-5)
    assert_same(found, gradients(method))


def whole_of_pieces(step: ContrastiveStep | ClassificationStep, pieces: list, third: Tensor) -> Tensor:
    """Return the loss of a batch whose parts were embedded apart; `third` are its texts or labels."""
    rows = [torch.cat(tensors) for tensors in zip(*(clips for _, clips, _ in pieces), strict=True)]
    clips, extra = type(pieces[0][1])(*rows), sum(term for *_, term in pieces) / len(pieces)
    if isinstance(step, ContrastiveStep):
        return step.batch_loss(step.method.encode_text(third), clips) + extra
    return step.loss(step.logits(step.frozen_classifier(), clips), third) + extra


def _on_a_process(folder: Path) -> None:
    with process_group() as process:
        for task in ("retrieval", "recognition"):
            method = a_method()
            step, inputs = a_step(task, method)
            share = tuple(tensor.chunk(process.world_size)[process.rank] for tensor in inputs)
            distributed = DistributedDataParallel(step)
            loss = distributed(*share)
            loss.backward()
            if process.is_main:
                save_file(gradients(method) | {"the loss": loss.detach()}, folder / task)


def test_processes_give_the_gradient_of_one(tmp_path):
    run_as_group(2, _on_a_process, tmp_path)
    for task in ("retrieval", "recognition"):
        method = a_method()
        step, inputs = a_step(task, method)
        loss = step(*inputs)
        loss.backward()
        found = load_file(tmp_path / task)
        assert found.pop("the loss").item() == pytest.approx(loss.item(), abs=1e-5)
        assert_same(found, gradients(method))


@pytest.mark.slow
def test_a_compiled_method_has_the_term():
    method, compiled = a_method(), a_method()
    compile_forward(compiled)
    for one in (method, compiled):
        step, inputs = a_step("recognition", one)
        step(*inputs).backward()
    assert_same(gradients(compiled), gradients(method))


# ---- whole runs ----


def training(small_actions, output: Path, *more: str) -> list[str]:
    few = ["--epochs", "1", "--batch_size", "12", "--output_dir", str(output)]
    return ["--do_train", *small_actions.flags(), *few, *DISTILL, *more]


def succeed(argv: list[str]) -> None:
    assert main(argv) == 0


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = (load_file(folder / "last.safetensors") for folder in (first, second))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_with_ratio_zero_both_are_the_same_run(small_actions, tmp_path):
    for name, *flags in (
        ("none", "--distill", "none"),
        ("zero", "--distill_ratio", "0"),
        ("term", "--distill_ratio", "2"),
    ):
        succeed(training(small_actions, tmp_path / name, *flags))
    assert_same_weights(tmp_path / "none", tmp_path / "zero")
    assert losses(tmp_path / "none") == losses(tmp_path / "zero") != losses(tmp_path / "term")
    with_term = load_file(tmp_path / "term" / "last.safetensors")
    own = {name for name in with_term if name.startswith("distillation.")}
    assert own == {"distillation.residual.0.weight", "distillation.residual.2.weight"}
    assert with_term["distillation.residual.2.weight"].any()  # g has learned
    visual = load_file(tmp_path / "none" / "last.safetensors")
    assert not any(name.startswith("distillation.") for name in visual)
    assert any(not torch.equal(tensor, with_term[name]) for name, tensor in visual.items())


def test_a_distilled_run_resumes_to_the_bit(small_actions, tmp_path, monkeypatch):
    more = ["--batch_size", "8", "--gradient_accumulation_steps", "2", "--activation_checkpointing"]
    succeed(training(small_actions, tmp_path / "whole", *more))
    with monkeypatch.context() as patched:
        interrupt_after(patched, 2)
        assert main(training(small_actions, tmp_path / "cut", *more)) == engine_run.EXIT_INTERRUPTED
    succeed(training(small_actions, tmp_path / "cut", *more, "--resume", "auto"))
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize("full", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_frozen_clip_is_that_of_the_flag_and_not_that_of_the_checkpoint(
    small_actions, tmp_path, monkeypatch, full, capsys
):
    """A full checkpoint holds another CLIP. A run goes on only with the frozen CLIP that it began with."""
    other = tmp_path / "clip.safetensors"
    save_file(to_openai_keys(tiny_clip(seed=5).state_dict()), other, {"activation": "quick_gelu"})
    clip = str(other if full else small_actions.clip)
    first = ["--save_full"] if full else []
    succeed(training(small_actions, tmp_path / "first", "--pretrained_clip_name", clip, *first))
    seen = []
    train = engine_run.Run.train

    def watched(run):
        before = copy.deepcopy(run.method.distillation._frozen[0].state_dict())
        train(run)
        seen.append((before, run.method.distillation._frozen[0].state_dict()))

    monkeypatch.setattr(engine_run.Run, "train", watched)
    start = ["--init_model", str(tmp_path / "first" / "last.safetensors")]
    succeed(training(small_actions, tmp_path / "second", *start))
    expected = load_file(small_actions.clip)["visual.proj"]
    ((before, after),) = seen
    assert torch.equal(before["proj"], expected)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    if full:  # a third CLIP: what is loaded into the method is the same
        third = tmp_path / "third.safetensors"
        save_file(to_openai_keys(tiny_clip(seed=6).state_dict()), third, {"activation": "quick_gelu"})
        resumed = training(small_actions, tmp_path / "second", *start, "--resume", "auto")
        assert main([*resumed, "--pretrained_clip_name", str(third)]) == 2
        assert "belongs to another run: frozen tensors is" in capsys.readouterr().err


def test_a_distilled_checkpoint_is_evaluated(small_actions, tmp_path):
    succeed(training(small_actions, tmp_path / "run"))
    weights = ["--init_model", str(tmp_path / "run" / "last.safetensors"), "--output_dir", str(tmp_path / "again")]
    succeed(["--do_eval", *small_actions.flags(), *weights])
    lines = [json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("run", "again")]
    assert lines[0]["top1"] == lines[1]["top1"]


def test_linear_connection_is_refused_on_the_command_line(small_actions, tmp_path, capsys):
    assert main(training(small_actions, tmp_path / "run", "--linear_connect", "0.5")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --linear_connect is Open-VCLIP's training on weights between")
    assert not (tmp_path / "run").exists()
