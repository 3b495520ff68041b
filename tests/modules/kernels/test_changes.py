"""The kernels of the dynamics nets against torch's own operators, on a GPU, or interpreted where there is none."""

import importlib.util
import os

import pytest
import torch
from torch import Tensor

from modules.clip import ARCHITECTURES
from modules.kernels import changes as kernels
from modules.methods import build_method
from modules.stop.dynamics import DynamicsNet, FrameTiming
from modules.stop.frame_changes import look
from tests.tiny import tiny_batch, tiny_clip

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
HALF = torch.bfloat16 if ON_GPU else torch.float16  # triton's interpreter multiplies the bits of bf16 as integers

pytestmark = [pytest.mark.gpu] if ON_GPU else []

if importlib.util.find_spec("triton") is None or not (ON_GPU or os.environ.get("TRITON_INTERPRET") == "1"):
    pytest.skip("needs triton, and a GPU or its interpreter (test_interpreted.py)", allow_module_level=True)

SIZES = [  # clips, sequences a clip, frames, grid, width
    (2, 4, 4, 3, 12),
    (2, 1, 4, 2, 20),
    (2, 3, 3, 5, 8),
    (2, 2, 2, 7, 8),
    (2, 1, 2, 9, 6),  # more patches than a program takes
]


def use_kernels(monkeypatch, used: bool) -> None:
    monkeypatch.setattr("modules.stop.frame_changes.usable", lambda x: used)


def all_of(size: tuple[int, ...], sees: str, padded: bool, dtype: torch.dtype, which: str) -> list[Tensor]:
    """What `look` gives, and every gradient, from random gradients on those parts that `which` names."""
    clips, count, frames, grid, width = size
    torch.manual_seed(0)
    normal = torch.randn(clips, count, 1 + grid * grid * frames // count, width)
    normal[0] = normal[0, :, :1]  # a still clip
    normal = normal.to(DEVICE, dtype).requires_grad_()
    net = DynamicsNet(width, sees=sees)  # type: ignore[arg-type]
    torch.nn.init.normal_(net.conv.weight)
    net.to(DEVICE)
    linears = [torch.randn(c, width, device=DEVICE, requires_grad=True) for c in (3, 5)]
    frame_mask = torch.ones(clips, frames, dtype=torch.bool)
    if padded:
        frame_mask[-1, -1] = False
    timeline = FrameTiming.of(frame_mask.to(DEVICE), torch.float32)
    seen = look(normal, timeline, dynamics=net, of_changes=linears[0], of_tokens=linears[1])
    given = [seen.energy, seen.changes, seen.tokens]
    loss = torch.zeros((), device=DEVICE)
    for letter, values in zip("ect", given, strict=True):
        if letter in which:
            loss = loss + (values.float() * torch.randn(values.shape, device=DEVICE)).sum()
    asked = [normal, net.conv.weight, *linears]
    gradients = torch.autograd.grad(loss, asked, allow_unused=True)
    return [values.detach() for values in given] + [g for g in gradients if g is not None]


@pytest.mark.parametrize(
    ("size", "padded", "which"),
    [
        (SIZES[0], True, "ect"),
        (SIZES[1], False, "ect"),
        (SIZES[2], True, "e"),
        (SIZES[3], False, "ct"),
        pytest.param(SIZES[4], False, "e", marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("sees", ["tokens", "changes"])
def test_look_is_the_same_by_kernels(size, sees, padded, which, monkeypatch):
    results = []
    for used in (True, False):
        use_kernels(monkeypatch, used)
        results.append(all_of(size, sees, padded, torch.float32, which))
    assert len(results[0]) == len(results[1]) == 3 + 1 + ("e" in which) + ("c" in which) + ("t" in which)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("sees", ["tokens", "changes"])
def test_half_precision_is_near_fp32(sees, monkeypatch):
    use_kernels(monkeypatch, True)
    size = (2, 3, 3, 2, 12)
    half = all_of(size, sees, True, HALF, "ect")
    use_kernels(monkeypatch, False)
    whole = all_of(size, sees, True, torch.float32, "ect")
    for ours, theirs in zip(half, whole, strict=True):
        assert (ours.float() - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("sees", ["tokens", "changes"])
def test_a_still_clip_has_no_energy_at_all(sees, dtype, monkeypatch):
    use_kernels(monkeypatch, True)
    net = DynamicsNet(24, sees=sees)
    torch.nn.init.normal_(net.conv.weight)
    normal = torch.randn(1, 1, 10, 24).expand(2, 4, -1, -1).to(DEVICE, dtype)
    timeline = FrameTiming.of(torch.ones(2, 4, dtype=torch.bool, device=DEVICE), torch.float32)
    seen = look(normal, timeline, dynamics=net.to(DEVICE))
    assert seen.energy is not None
    assert not seen.energy.any()


def test_programs_share_frames_and_take_several_tiles(monkeypatch):
    monkeypatch.setattr(kernels, "PARTS", 2)
    monkeypatch.setattr(kernels, "ROWS", 16)
    results = []
    for used in (True, False):
        use_kernels(monkeypatch, used)
        results.append(all_of((9, 1, 3, 2, 6), "changes", True, torch.float32, "e"))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("attention", ["frame", pytest.param("joint", marks=pytest.mark.slow)])
def test_a_step_of_stop_is_the_same_by_kernels(attention, monkeypatch):
    batch = [tensor.to(DEVICE) for tensor in tiny_batch(batch=2, frames=3)]
    results = []
    for used in (True, False):
        use_kernels(monkeypatch, used)
        options = {"attention": attention, "prompt_dropout": 0.0, "prompt_depth": 1}
        method = build_method("stop", tiny_clip(), **options).to(DEVICE).train()
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        text, clips = method(*batch)
        (text.square().sum() + (clips * torch.linspace(-1, 1, clips.shape[1], device=DEVICE)).sum()).backward()
        results.append({"clips": clips} | {name: p.grad for name, p in method.named_parameters() if p.requires_grad})
    for name, theirs in results[1].items():
        torch.testing.assert_close(results[0][name], theirs, rtol=2e-3, atol=2e-4 * theirs.abs().max().item(), msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("sees", ["tokens", "changes"])
def test_compiled_is_eager(sees, monkeypatch):
    use_kernels(monkeypatch, True)
    eager = all_of(SIZES[0], sees, True, torch.float32, "ect")
    torch._dynamo.reset()
    monkeypatch.setitem(globals(), "look", torch.compile(look, backend="aot_eager", fullgraph=True))
    for ours, theirs in zip(all_of(SIZES[0], sees, True, torch.float32, "ect"), eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("taps", [2, 3])
def test_traced_operators_have_the_layout_of_the_real_ones(taps):
    tokens = torch.randn(2, 4, 10, 6, device=DEVICE)
    gap_mask = torch.ones(2, 3, dtype=torch.bool, device=DEVICE)
    changes = kernels.take_changes(tokens, gap_mask, 4)
    kernel = torch.randn(6, 1, taps, 3, 3, device=DEVICE)
    energy, features = kernels.change_energy(changes, kernel, 9)
    for operator, arguments in (
        (kernels.take_changes, (tokens, gap_mask, 4)),
        (kernels.take_changes_backward, (changes, None, [2, 4, 10, 6], None)),
        (kernels.take_changes_backward, (changes, gap_mask, [2, 4, 10, 6], tokens)),
        (kernels.change_energy, (changes, kernel, 9)),
        (kernels.change_energy_backward, (energy, features, changes, kernel, True, changes)),
        (kernels.change_energy_backward, (energy, features, changes, kernel, False, None)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"])
@pytest.mark.parametrize("sees", ["tokens", "changes"])
def test_every_clip_has_room_for_its_tiles(name, dtype, sees, monkeypatch):
    architecture = ARCHITECTURES[name]
    size = (8, 12, 12, architecture.grid, architecture.vision_width)  # so many frames that tiles are full
    results = []
    for used in (True, False):
        use_kernels(monkeypatch, used)
        results.append(all_of(size, sees, True, dtype if used else torch.float32, "ect"))
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    for ours, theirs in zip(*results, strict=True):
        assert (ours.float() - theirs).norm() < tolerance * theirs.norm()
