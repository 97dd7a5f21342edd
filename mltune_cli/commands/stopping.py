"""Ctrl-C and SIGTERM as exceptions, so that `finally` blocks run and children are stopped."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mltune_cli.errors import ExitCode, StoppedBySignalError

_HELD_SIGNAL = 2


def raise_on_signals() -> None:
    """Make SIGINT and SIGTERM raise `StoppedBySignalError` in the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is given
        raise StoppedBySignalError(
            ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED
        )

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


@contextmanager
def second_signal_held() -> Iterator[None]:
    """Let only the first signal, and then the third, end the block at once.

    What ends on a signal tidies up, and a second one would end that wherever it stands: people
    press Ctrl-C twice. Who presses it three times means it.
    """
    count = 0
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        handler = earlier[signal.Signals(number)]
        if count != _HELD_SIGNAL and callable(handler):
            handler(number, frame)

    for number in earlier:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
