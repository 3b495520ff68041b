"""Handles the signals that ask a run to stop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # clusters send these before they take a machine away


class Interrupted(Exception):
    """A signal asked the run to stop; its resume point has been written."""


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether one of STOP_SIGNALS has arrived inside the context."""
    came = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in STOP_SIGNALS}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
