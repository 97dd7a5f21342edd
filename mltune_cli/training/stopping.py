"""Requests to stop: the step is finished first, where there is one."""

import signal
from types import FrameType
from typing import Protocol

from mltune_cli.errors import ExitCode, StoppedBySignalError
from mltune_cli.launching.control_folder import ControlFolder


class StopSource(Protocol):
    """Where a request to stop is seen."""

    def defer(self) -> None:
        """Say that the loop begins: from now on a request waits for the end of the step.

        Raises:
            StoppedBySignalError: there is one already.
        """

    @property
    def code(self) -> ExitCode | None:
        """What the run is to end with; None while nobody asked."""


class SignalledStop:
    """Notes SIGINT and SIGTERM for the loop to find; before the loop they end the process."""

    def __init__(self) -> None:
        self._is_deferring = False
        self._code: ExitCode | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    @property
    def code(self) -> ExitCode | None:
        """See `StopSource`."""
        return self._code

    def defer(self) -> None:
        """See `StopSource`."""
        self._is_deferring = True
        if self._code is not None:  # its exception was caught by somebody
            raise StoppedBySignalError(self._code)

    def _take(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - given
        self._code = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED
        if not self._is_deferring:
            raise StoppedBySignalError(self._code)


class WrittenStop:
    """Reads the request off the launcher's control folder, where a restart finds it too."""

    def __init__(self, control: ControlFolder) -> None:
        self._control = control

    @property
    def code(self) -> ExitCode | None:
        """See `StopSource`."""
        return self._control.stop_code()

    def defer(self) -> None:
        """See `StopSource`."""
        if self.code is not None:
            raise StoppedBySignalError(self.code)


class NoStop:
    """Nobody can ask."""

    code: ExitCode | None = None

    def defer(self) -> None:
        """See `StopSource`."""
