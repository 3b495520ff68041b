"""Compiles the encoders into one graph for training (--compile)."""

import torch

from modules.kernels import usable
from modules.methods import Method


def compiler_error(device: torch.device) -> ValueError | None:
    """Return the reason why torch.compile cannot generate code for `device` on this machine, or None if it can."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        return ValueError(
            "--compile needs a working C++ compiler (g++), and on a GPU triton and a C compiler with Python's headers; "
            f"torch.compile says: {reason}"
        )
    return None


def compile_forward(method: Method) -> None:
    """Compile the method's `forward` into one graph at its first call, and again for every other batch size.

    The graph goes from normalised pixels and words to embeddings. With --gradient_accumulation_steps there are two, one
    without and one with gradient. Evaluation stays eager: its last batches are smaller, and each size would be compiled
    anew. No tensor changes its name. Random numbers are those that are drawn without compilation.
    """
    # DDP's optimiser would cut the graph where gradients are sent. Older versions of torch refuse to cut ours, because
    # it contains an autograd.Function and recomputed blocks as inner graphs.
    torch._dynamo.config.optimize_ddp = False
    # The layout pass takes tokens [B,T,P,D] for images, and copies what is kept for backward to a layout for images.
    torch._inductor.config.layout_optimization = False
    torch._inductor.config.fallback_random = True  # its own numbers can differ between the two graphs
    usable(method.clip.logit_scale)  # caches the answer, because the check cannot run while torch traces
    method.compile(dynamic=False)
