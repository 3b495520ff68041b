"""Starting commands under test in processes of their own."""

import signal


def heed_interrupts() -> None:
    """As `preexec_fn`: what a shell starts in the background ignores SIGINT, and so do all its descendants."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
