"""Ctrl-C and SIGTERM as exceptions, so that `finally` blocks run and children are stopped."""

import signal
from types import FrameType

from mltune_cli.errors import ExitCode, StoppedBySignalError


def raise_on_signals() -> None:
    """Make SIGINT and SIGTERM raise `StoppedBySignalError` in the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is given
        raise StoppedBySignalError(
            ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED
        )

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
