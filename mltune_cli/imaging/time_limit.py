"""A time limit on whatever is being waited for, sockets included."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mltune_cli.errors import NoVerdictError


@contextmanager
def time_limit(seconds: float | None, doing: str) -> Iterator[None]:
    """End a block of the main thread when its time is up.

    An alarm interrupts any wait, where a socket's own time-out only counts the silence between two
    of its messages.

    Args:
        seconds: None, or another thread than the main one, for no limit.
        doing: what the time was for, such as `building the image`.

    Raises:
        NoVerdictError: the time is up.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is given
        raise NoVerdictError(f"{doing} took longer than --timeout {seconds:g}; it was stopped")

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
