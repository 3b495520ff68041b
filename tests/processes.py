"""Run code under test in other processes: as a command, or as one of several gloo processes."""

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp


def heed_interrupts() -> None:
    """Let a process react to SIGINT, which a shell's background processes ignore; pass this as `preexec_fn`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def free_port() -> int:
    """Return a TCP port of this machine that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run_as_group(world_size: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(*arguments)` in each of `world_size` processes, in the environment that torchrun would give them.

    The processes are forks, which start in milliseconds; a fresh Python takes seconds to import torch. They compute on
    the CPU, because a fork cannot use a GPU. If one fails, the others are ended and its traceback is raised here.
    """
    mp.start_processes(_join, (world_size, free_port(), function, arguments), nprocs=world_size, start_method="fork")


def _join(rank: int, world_size: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: False
    function(*arguments)
