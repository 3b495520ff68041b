"""What the commands over many videos share: dividing work over machines, processes and processors, and exit codes."""

import argparse
import os
import sys
from collections.abc import Callable
from datetime import timedelta

from dataloaders.quoting import shorten
from engine.messages import print_error


def parse_shard(text: str | None) -> tuple[int, int]:
    """Return (i, n) of "i/n"; by default torchrun's RANK and WORLD_SIZE, else (0, 1). ValueError unless 0 <= i < n."""
    text = text or f"{os.environ.get('RANK', 0)}/{os.environ.get('WORLD_SIZE', 1)}"
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and int(number) < int(count):
        return int(number), int(count)
    raise ValueError(f"--shard {shorten(text)} is not of the form i/n with i from 0 to n - 1, for example 0/4.")


def default_jobs() -> int:
    """Return this process's share of the processors it may use, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def wait_for_other_ranks() -> None:
    """Under torchrun, wait for all processes to get here: torchrun stops them all when one ends with a failure."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        import torch.distributed as dist  # takes seconds, and only this case needs it

        dist.init_process_group("gloo", timeout=timedelta(days=7))
        dist.barrier()
        dist.destroy_process_group()


def exit_code(run: Callable[[], int], interrupted: str) -> int:
    """Return the result of `run`; 2 and one sentence for a mistake, 130 and `interrupted` after Ctrl-C."""
    try:
        return run()
    except (ValueError, OSError, argparse.ArgumentError) as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print(f"Interrupted: {interrupted}", file=sys.stderr)
        return 130
