"""SIGINT and SIGTERM in the worker: the step is finished first, where there is one."""

import signal
from types import FrameType

from mltune_cli.errors import ExitCode, StoppedBySignalError


class StopRequest:
    """Notes a signal for the loop to find after the step; before the loop it stops at once."""

    def __init__(self) -> None:
        self._is_deferring = False
        self.code: ExitCode | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def defer(self) -> None:
        """From now on a signal waits for the end of the step."""
        self._is_deferring = True

    def _take(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - given
        code = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED
        if not self._is_deferring:
            raise StoppedBySignalError(code)
        self.code = code
