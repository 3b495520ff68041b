"""Adapters against loops from their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from modules.adapters import BottleneckAdapter, SpaceTimeAdapter, activation


def filled(module):
    """Return the module with random values in all of its parameters, zeros too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("relu", lambda z: max(z, 0.0)),
        ("gelu", lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2),
        ("quick_gelu", lambda z: z / (1 + math.exp(-1.702 * z))),
    ],
)
def test_activations(name, formula):
    values = [-3.0, -0.5, 0.0, 0.7, 2.0]
    expected = torch.tensor([formula(value) for value in values])
    torch.testing.assert_close(activation(name)(torch.tensor(values)), expected)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_a_bottleneck_against_its_formula(scale):
    adapter = filled(BottleneckAdapter(6, 3, "quick_gelu", scale=scale))
    u = torch.randn(2, 4, 6)
    hidden = u @ adapter.down.weight.T + adapter.down.bias
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    torch.testing.assert_close(adapter(u), scale * (hidden @ adapter.up.weight.T + adapter.up.bias))


def test_initial_values():
    torch.manual_seed(0)
    kaiming = BottleneckAdapter(64, 32)
    xavier = BottleneckAdapter(64, 32, draw="xavier", bias_std=1e-6)
    assert kaiming.down.weight.abs().max().item() == pytest.approx(1 / 8, rel=0.02)
    assert xavier.down.weight.abs().max().item() == pytest.approx(math.sqrt(6 / 96), rel=0.02)
    assert kaiming.down.bias.eq(0).all()
    assert xavier.down.bias.std().item() == pytest.approx(1e-6, rel=0.4)
    for adapter in (kaiming, xavier):
        assert adapter(torch.randn(5, 64)).eq(0).all()
    space_time = SpaceTimeAdapter(64, 32, (3, 1, 1), conv_bias=True)
    assert space_time.up.weight.abs().max() > 0.1  # only the convolution starts at zero
    assert space_time(torch.randn(1, 2, 4, 64), torch.ones(1, 2, dtype=torch.bool)).eq(0).all()


@pytest.mark.parametrize(("kernel", "conv_bias"), [((3, 3, 3), False), ((3, 1, 1), True)])
def test_st_adapter_against_a_loop_over_taps(kernel, conv_bias):
    """Each tap of the kernel reads a frame and a patch; outside the clip and the grid there is nothing."""
    adapter = filled(SpaceTimeAdapter(5, 4, kernel, conv_bias=conv_bias))
    patches = torch.randn(2, 3, 9, 5)
    frame_mask = torch.tensor([[True, True, True], [True, True, False]])
    out = adapter(patches, frame_mask)
    for clip, real in enumerate(frame_mask.sum(dim=1).tolist()):
        hidden = adapter.down(patches[clip, :real]).unflatten(1, (3, 3))
        for t in range(real):
            for row in range(3):
                for column in range(3):
                    total = torch.zeros(4) if adapter.conv.bias is None else adapter.conv.bias
                    for a, b, c in torch.cartesian_prod(*(torch.arange(size) for size in kernel)).tolist():
                        at = [t + a - kernel[0] // 2, row + b - kernel[1] // 2, column + c - kernel[2] // 2]
                        if all(0 <= place < end for place, end in zip(at, (real, 3, 3), strict=True)):
                            total = total + adapter.conv.weight[:, 0, a, b, c] * hidden[at[0], at[1], at[2]]
                    torch.testing.assert_close(out[clip, t, 3 * row + column], adapter.up(total))


def test_st_adapter_against_torchs_convolution():
    adapter = filled(SpaceTimeAdapter(5, 4, (3, 3, 3), conv_bias=True))
    patches = torch.randn(2, 4, 16, 5)
    cube = adapter.down(patches).reshape(2, 4, 4, 4, 4).movedim(-1, 1)
    related = F.conv3d(cube, adapter.conv.weight, adapter.conv.bias, padding=1, groups=4)
    expected = adapter.up(related.movedim(1, -1).reshape(2, 4, 16, 4))
    torch.testing.assert_close(adapter(patches, torch.ones(2, 4, dtype=torch.bool)), expected)
