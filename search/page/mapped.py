"""Weights that take memory only where they are read."""

import tempfile
from contextlib import suppress

import numpy as np
import torch
from torch import nn

ALIGNED = 64  # bytes: where a tensor may begin in the file


def map_weights(module: nn.Module) -> None:
    """Move a module's parameters on the CPU from memory into a file without a name, which is mapped in their place.

    The system reads a page of the file when it is first used. A server that is asked by words never uses CLIP's vision
    tower and few rows of its vocabulary: of a ViT-B/32, 0.4 of 0.6 GB. Where the folder of temporary files has no room,
    the parameters stay in memory.
    """
    own = [parameter for parameter in module.parameters() if parameter.device.type == "cpu" and parameter.numel()]
    with suppress(OSError), tempfile.TemporaryFile() as file:
        mapped = []
        for parameter in own:
            file.seek(-file.tell() % ALIGNED, 1)
            place = file.tell()
            file.write(parameter.detach().flatten().view(torch.uint8).numpy().tobytes())
            mapped.append((place, parameter.numel() * parameter.element_size()))
        file.flush()
        # "c": what is written to a tensor stays in this process.
        maps = [np.memmap(file, np.uint8, "c", place, (size,)) for place, size in mapped]
        for parameter, content in zip(own, maps, strict=True):
            parameter.data = torch.from_numpy(content).view(parameter.dtype).view(parameter.shape)
