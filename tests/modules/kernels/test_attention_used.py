"""The attention module uses the kernel on a GPU, and gives with it what torch's attention gives.

Runs on a GPU, or with TRITON_INTERPRET=1 on a CPU (test_interpreted.py).
"""

import importlib.util
import os

import pytest
import torch

from modules import attention as attention_module
from modules.kernels import usable
from tests.modules.kernels.attention_cases import DEVICE, HALF, ON_GPU

pytestmark = [pytest.mark.gpu] if ON_GPU else []

if importlib.util.find_spec("triton") is None or not (ON_GPU or os.environ.get("TRITON_INTERPRET") == "1"):
    pytest.skip("needs triton, and a GPU or its interpreter (test_interpreted.py)", allow_module_level=True)


def test_usable_only_on_a_gpu():
    assert not usable(torch.zeros(1))
    assert usable(torch.zeros(1, device=DEVICE)) == ON_GPU


@pytest.mark.parametrize(
    ("rows", "causal", "masked"),  # every two of them in every way; None: no context
    [
        (None, False, None),
        (None, True, "by key"),
        (None, False, "by query"),
        (1, True, None),
        (1, False, "by key"),
        (1, True, "by query"),
        (2, False, None),
        (2, True, "by key"),
        (2, False, "by query"),
    ],
)
def test_a_block_uses_the_kernel_and_gives_the_same(rows, causal, masked, monkeypatch):
    """The kernel is really used: its results differ from torch's in the last bits."""
    length, others = 6, 0 if rows is None else 4
    masks = {
        None: None,
        "by key": torch.rand(2, 1, 1, length + others, device=DEVICE) > 0.3,
        "by query": torch.rand(1, 1, length, length + others, device=DEVICE) > 0.3,
    }
    mask = masks[masked]
    if mask is not None:
        mask[..., 0] = True
    torch.manual_seed(0)
    module = attention_module.Attention(32, 2).to(DEVICE, HALF)
    x = torch.randn(2, length, 32, device=DEVICE, dtype=HALF)
    parts = [] if rows is None else [torch.randn(rows, others, 32, device=DEVICE, dtype=HALF) for _ in range(2)]
    results = []
    for used in (True, False):
        monkeypatch.setattr("modules.attention.usable", lambda x, used=used: used)
        leaves = [part.clone().requires_grad_() for part in (x, *parts)]
        context = None if rows is None else attention_module.KeysValues(*leaves[1:])
        found = module(leaves[0], context, mask, causal)
        results.append([found, *torch.autograd.grad(found.float().square().sum(), leaves)])
    assert not torch.equal(results[0][1], results[1][1])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).float().norm() < 0.01 * theirs.float().norm()
