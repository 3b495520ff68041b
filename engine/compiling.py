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

    The graph goes from normalised pixels and words to embeddings. With --gradient_accumulation_steps there are two
    graphs, one without and one with gradient. `encode_video` and `encode_text` stay eager, and so does evaluation: its
    last batches are smaller, and torch would compile each size again. Tensor names do not change. Dropout draws other
    numbers than without compilation.
    """
    # DDP's optimiser would cut the graph where gradients are sent. Older versions of torch refuse to cut ours, because
    # it contains an autograd.Function and recomputed blocks as inner graphs.
    torch._dynamo.config.optimize_ddp = False
    # The layout pass mistakes clips' tokens [B,T,P,D] for images with T channels, and copies tensors saved for backward
    # to an image layout.
    torch._inductor.config.layout_optimization = False
    usable(method.clip.logit_scale)  # caches the answer, because the check cannot run while torch traces
    method.compile(dynamic=False)
