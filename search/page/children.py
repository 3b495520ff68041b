"""Child processes that decode what others have made, so that a file that hangs or crashes a decoder costs one answer.

The server has threads, and a fork of a process with threads may hang. So children are forked from an own process that
has none (multiprocessing's fork server), which has imported what they need.
"""

import multiprocessing
import resource
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from dataloaders.quoting import shorten

PRELOADED = "search.page.decoding"
MEMORY = 4 << 30  # bytes that a child may take beyond what it starts with

P = ParamSpec("P")
T = TypeVar("T")


class Children:
    """At most `most` child processes; each call runs in one of them, and waits for a free one.

    A call that takes more than `limit` seconds ends its child. Use it as a context, or call `close`.
    """

    def __init__(self, most: int, limit: float) -> None:
        self._limit = limit
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([PRELOADED])
        # It imports for seconds, in which this process loads the model, and in which Ctrl-C must not reach it.
        resource_tracker.ensure_running()  # the fork server would start it, and it lets signals through when it is done
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        forkserver.ensure_running()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._free = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._closed = False

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all children; calls that still run raise ValueError."""
        with self._lock:
            self._closed = True
            for child in [*self._idle, *self._busy]:
                child.kill()
            self._idle = []

    def run(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Return what a function of a module returns. Raises ValueError with one sentence if it raises, takes too long,
        or ends its process."""
        with self._free:
            child = self._take()
            try:
                result, reason = child.ask((function, arguments, named), self._limit)
            except BaseException:
                child.kill()
                raise
            finally:
                with self._lock:
                    self._busy.discard(child)
                    if child.lives and not self._closed:
                        self._idle.append(child)
        if reason:
            raise ValueError(reason)
        return result  # type: ignore[no-any-return]

    def _take(self) -> "_Child":
        with self._lock:
            if self._closed:
                raise ValueError("the server is ending")
            child = self._idle.pop() if self._idle else _Child(self._context)
            self._busy.add(child)
            return child


class _Child:
    def __init__(self, context: Any) -> None:
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self.lives = True

    def ask(self, request: Any, limit: float) -> tuple[Any, str]:
        """Return the result of a request and "", or None and why there is none."""
        try:
            self._connection.send(request)
            if self._connection.poll(limit):
                answer: tuple[Any, str] = self._connection.recv()
                return answer
            self.kill()
            return None, f"the file took more than {limit:g} s to decode: re-encode it, or take a shorter one"
        except (EOFError, OSError):
            self.kill()
            code = self._process.exitcode
            how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
            return None, f"the file crashed its decoder ({how}): re-encode it (ffmpeg -i IN -c:v libx264 OUT.mp4)"

    def kill(self) -> None:
        self.lives = False
        self._process.kill()
        self._process.join()
        self._connection.close()


def _work(connection: Connection) -> None:
    """Answer requests until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends this process
    _limit_memory()
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with suppress(EOFError, OSError):
        while True:
            function, arguments, named = connection.recv()
            try:
                answer = function(*arguments, **named), ""
            except (ValueError, OSError) as error:
                answer = None, str(error)
            except MemoryError:
                answer = None, "the file needs more memory than a preview may take: use a smaller one"
            except Exception as error:  # what a library may say of a file made to break it
                answer = None, f"the file cannot be read ({type(error).__name__}: {shorten(str(error), 200)})"
            connection.send(answer)


def _limit_memory() -> None:
    with suppress(OSError, ValueError), open("/proc/self/statm") as file:
        most = int(file.read().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
