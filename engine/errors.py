"""Explains errors of torch and the system to the user, in one sentence."""

import re
from collections.abc import Callable

from torch import OutOfMemoryError
from torch.distributed import DistError

from engine.messages import print_error, print_result

# torch's messages (torch/utils/data/dataloader.py, and its signal handler in C++): it has no classes for these errors.
_WORKER_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ?([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited)")
_BUS_ERROR = re.compile(r"Bus error|shared memory")
_SHARED_MEMORY_FULL = re.compile(r"unable to (?:write to|allocate|resize|mmap) .*</torch_", re.DOTALL)
_NO_MEMORY = re.compile(r"can't allocate memory|Cannot allocate memory")
_PEER_GONE = re.compile(r"Connection (?:closed|reset) by (?:remote )?peer|Broken pipe|gloo.*Timed out")


def explained(error: BaseException) -> Exception | None:
    """Return an error whose message is one sentence for the user, or None if the error is a bug.

    A ValueError or OSError is returned unchanged, because its message already is one sentence. A RuntimeError or
    MemoryError with a known cause becomes an OSError that says what happened and what to do.
    """
    if isinstance(error, ValueError | OSError):
        return error
    message = f"{error} {error.__cause__ or ''}"  # the cause names the signal that killed a worker
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(message)):
        return OSError(
            "the machine has no memory left: lower --batch_size, --batch_size_val or --max_frames, or pass "
            "--gradient_accumulation_steps"
        )
    if isinstance(error, OutOfMemoryError):
        return OSError(
            "the GPU has no memory left: pass --gradient_accumulation_steps or --activation_checkpointing, which "
            "change no result, or lower --batch_size (in evaluation --batch_size_val)"
        )
    if not isinstance(error, RuntimeError):
        return None
    if _SHARED_MEMORY_FULL.search(message):
        return _no_shared_memory("a worker process that decodes videos")
    if died := _WORKER_DIED.search(message):
        which, signal = died[1].strip(), died[2]
        if _BUS_ERROR.search(message):
            return _no_shared_memory(f"a worker process that decodes videos (pid {which})")
        how = f"was killed ({signal.strip()})" if signal else "ended unexpectedly"
        return OSError(
            f"a worker process that decodes videos (pid {which}) {how}, most likely because the machine ran out of "
            "memory: lower --num_thread_reader or --prefetch_factor, which change no result"
        )
    if isinstance(error, DistError) or _PEER_GONE.search(message):
        return OSError("another process of this run has ended; see its message for the reason")
    return None


def _no_shared_memory(who: str) -> OSError:
    return OSError(
        f"{who} found no room in /dev/shm, which holds its batches: enlarge it (docker run --shm-size), or lower "
        "--num_thread_reader or --prefetch_factor"
    )


def one_sentence(error: BaseException) -> str:
    """Return the message of an error, without the traceback that an error of a worker process contains."""
    message = str(error).strip()
    if "Original Traceback" in message:
        message = message.splitlines()[-1].split(": ", 1)[-1]
    return message


def print_report(report: Callable[[], str]) -> int:
    """Print the text that `report` returns, or one sentence about a mistake; return the exit code 0 or 2."""
    try:
        print_result(report())
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        known = explained(error)
        if known is None:
            raise
        print_error(one_sentence(known))
        return 2
    return 0
