"""Signals that wait until a child process is in somebody's hands."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_signals() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back for a moment, and deliver the first one at the end.

    An exception that a handler raises while a process is being started would lose the process: it
    runs already, and nobody has its name. Handlers that are installed inside stay, and are the
    ones that a held signal goes to. Blocking the signals instead would block them in the child.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread alone: nothing is interrupted here
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is given
        held.append(number)

    earlier = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            if signal.getsignal(number) is hold:
                signal.signal(number, handler)
        if held:
            os.kill(os.getpid(), held[0])
