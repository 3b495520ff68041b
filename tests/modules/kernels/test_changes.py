"""The kernels of the dynamics nets against torch's own operators, on a GPU or, without one, interpreted."""

import importlib.util
import os

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modules.clip import ARCHITECTURES
from modules.kernels import changes as kernels
from modules.methods import build_method
from modules.stop.dynamics import DynamicsNet
from modules.stop.frame_changes import frame_changes
from modules.stop.timing import FrameTiming
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


def measured(normal: Tensor, net: DynamicsNet, linear: Tensor, timing: FrameTiming) -> tuple[Tensor, Tensor]:
    """Return the energy of the changes, and a Linear of them."""
    changes = frame_changes(normal, timing)
    return net(changes), changes.linear(linear.to(normal.dtype))


def all_of(size: tuple[int, ...], sees: str, padded: bool, dtype: torch.dtype, which: str) -> list[Tensor]:
    """Return the results of `measured`, and every gradient, from random gradients of the parts that `which` names."""
    clips, count, frames, grid, width = size
    torch.manual_seed(0)
    normal = torch.randn(clips, count, 1 + grid * grid * frames // count, width)
    normal[0] = normal[0, :, :1]  # a still clip
    normal = normal.to(DEVICE, dtype).requires_grad_()
    net = DynamicsNet(width, sees=sees)  # type: ignore[arg-type]
    torch.nn.init.normal_(net.conv.weight)
    net.to(DEVICE)
    linear = torch.randn(3, width, device=DEVICE, requires_grad=True)
    frame_mask = torch.ones(clips, frames, dtype=torch.bool)
    if padded:
        frame_mask[-1, -1] = False
    found = measured(normal, net, linear, FrameTiming.of(frame_mask.to(DEVICE), torch.float32))
    loss = torch.zeros((), device=DEVICE)
    for letter, values in zip("el", found, strict=True):
        if letter in which:
            loss = loss + (values.float() * torch.randn(values.shape, device=DEVICE)).sum()
    gradients = torch.autograd.grad(loss, [normal, net.conv.weight, linear], allow_unused=True)
    return [values.detach() for values in found] + [g for g in gradients if g is not None]


@pytest.mark.parametrize(
    ("size", "padded", "which"),
    [
        (SIZES[0], True, "el"),
        (SIZES[1], False, "el"),
        (SIZES[2], True, "e"),
        (SIZES[3], False, "l"),
        pytest.param(SIZES[4], False, "e", marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("sees", ["tokens", "changes"])
def test_changes_are_the_same_by_kernels(size, sees, padded, which, monkeypatch):
    results = []
    for used in (True, False):
        use_kernels(monkeypatch, used)
        results.append(all_of(size, sees, padded, torch.float32, which))
    assert len(results[0]) == len(results[1]) == 2 + 1 + len(which)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("sees", ["tokens", "changes"])
def test_half_precision_is_near_fp32(sees, monkeypatch):
    use_kernels(monkeypatch, True)
    size = (2, 3, 3, 2, 12)
    half = all_of(size, sees, True, HALF, "el")
    use_kernels(monkeypatch, False)
    whole = all_of(size, sees, True, torch.float32, "el")
    for ours, theirs in zip(half, whole, strict=True):
        assert (ours.float() - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("sees", ["tokens", "changes"])
def test_a_still_clip_has_no_energy_at_all(sees, dtype, monkeypatch):
    use_kernels(monkeypatch, True)
    net = DynamicsNet(24, sees=sees)
    torch.nn.init.normal_(net.conv.weight)
    normal = torch.randn(1, 1, 10, 24).expand(2, 4, -1, -1).to(DEVICE, dtype)
    timing = FrameTiming.of(torch.ones(2, 4, dtype=torch.bool, device=DEVICE), torch.float32)
    assert not net.to(DEVICE)(frame_changes(normal, timing)).any()


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
def test_compiled_equals_eager(sees, monkeypatch):
    use_kernels(monkeypatch, True)
    eager = all_of(SIZES[0], sees, True, torch.float32, "el")
    torch._dynamo.reset()
    monkeypatch.setitem(globals(), "measured", torch.compile(measured, backend="aot_eager", fullgraph=True))
    for ours, theirs in zip(all_of(SIZES[0], sees, True, torch.float32, "el"), eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("taps", "masked"), [(2, True), (3, False)])
def test_operators_follow_torchs_rules(taps, masked):
    """Traced results have the real layout, nothing is written to or aliased, and gradients are registered."""
    tokens = torch.randn(2, 4, 5, 2, device=DEVICE, requires_grad=True)
    gap_mask = torch.tensor([[True, True, True], [True, False, True]], device=DEVICE) if masked else None
    kernel = torch.randn(2, 1, taps, 3, 3, device=DEVICE, requires_grad=True)
    changes = kernels.frame_changes(tokens, gap_mask, 4).detach().requires_grad_()
    energy, features = (part.detach() for part in kernels.change_energy(changes, kernel, 4))
    for operator, arguments in (
        (kernels.frame_changes, (tokens, gap_mask, 4)),
        (kernels.frame_changes_backward, (changes.detach(), gap_mask, 4, 5)),
        (kernels.change_energy, (changes, kernel, 4)),
        (kernels.change_energy_backward, (energy, features, changes.detach(), kernel.detach(), True)),
        (kernels.change_energy_backward, (energy, features, changes.detach(), kernel.detach(), False)),
    ):
        torch.library.opcheck(operator, arguments)


def test_activation_checkpointing_and_autocast_give_the_same(monkeypatch):
    use_kernels(monkeypatch, True)
    torch.manual_seed(0)
    net, linear = DynamicsNet(4, sees="changes").to(DEVICE), torch.randn(3, 4, device=DEVICE, requires_grad=True)
    timing = FrameTiming.of(torch.ones(2, 3, dtype=torch.bool, device=DEVICE), torch.float32)
    x = torch.randn(2, 3, 5, 4, device=DEVICE, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        energy, projected = measured(x, net, linear, timing)
        return energy.sum() + projected.float().square().sum()

    leaves = [x, net.conv.weight, linear]
    plain = torch.autograd.grad(run(x), leaves)
    again = torch.autograd.grad(checkpoint(run, x, use_reentrant=False), leaves)
    with torch.autocast(DEVICE.type, HALF):
        half = torch.autograd.grad(checkpoint(run, x.to(HALF), use_reentrant=False), leaves)
    for ours, repeated, rounded in zip(plain, again, half, strict=True):
        assert torch.equal(ours, repeated)
        assert rounded.dtype == torch.float32
        assert (ours - rounded).norm() < 0.02 * ours.norm()


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"])
@pytest.mark.parametrize("sees", ["tokens", "changes"])
def test_every_clip_has_room_for_its_tiles(name, dtype, sees, monkeypatch):
    architecture = ARCHITECTURES[name]
    size = (8, 12, 12, architecture.grid, architecture.vision_width)  # enough frames to fill the tiles
    results = []
    for used in (True, False):
        use_kernels(monkeypatch, used)
        results.append(all_of(size, sees, True, dtype if used else torch.float32, "el"))
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    for ours, theirs in zip(*results, strict=True):
        assert (ours.float() - theirs).norm() < tolerance * theirs.norm()
