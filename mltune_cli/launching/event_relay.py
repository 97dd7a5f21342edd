"""Events of several workers, brought from one named pipe to the command."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from mltune_cli.errors import NoVerdictError
from mltune_cli.launching.events import EventPipe, Failed, Started, StepDone, parse_event
from mltune_cli.launching.failures import explained

_END = b"end\n"
_DRAIN_SECONDS = 10.0
# All workers come to most failures together; the one that writes the files has this long to say
# so in the manifest.
_GRACE_SECONDS = 1.0


class EventRelay:
    """Passes events on as they come, but keeps failures: the first one explains the run.

    Args:
        path: where the named pipe is made.
        pipe: to the command.
        on_failure: called from another thread, soon after a worker has explained a failure.
    """

    def __init__(self, path: Path, pipe: EventPipe, on_failure: Callable[[], None]) -> None:
        os.mkfifo(path, 0o600)
        # Open for both, so that neither our opening nor a worker's waits for the other side, and
        # the pipe does not end when all workers do.
        self._descriptor = os.open(path, os.O_RDWR)
        self._pipe = pipe
        self._on_failure = on_failure
        self._failure: Failed | None = None
        self._is_ending = False
        self._drained = threading.Event()
        self.has_started = False
        self.has_steps = False
        self._thread = threading.Thread(target=self._pass_on, daemon=True)
        self._thread.start()

    def forget_steps(self) -> None:
        """Let `has_steps` tell of the workers that are started next."""
        self.has_steps = False

    def raise_failure(self) -> None:
        """Raise what a worker explained, if one did; called when the workers have ended.

        Raises:
            MltuneError: the first explanation.
            StoppedBySignalError: likewise.
        """
        self._drain()
        if self._failure is not None:
            raise explained(self._failure)

    def _drain(self) -> None:
        """Wait until everything that the workers wrote has been read."""
        drained = threading.Event()
        self._drained = drained
        # A line of its own, also behind one that a killed worker left without an end.
        os.write(self._descriptor, b"\n" + _END)
        # A command that is only slow to read is waited for; one that is gone is not.
        while not drained.wait(_DRAIN_SECONDS):
            if self._is_ending:
                return

    def close(self) -> None:
        """Pass on what is left, and end."""
        self._drain()

    def _pass_on(self) -> None:
        with os.fdopen(os.dup(self._descriptor), "rb") as stream:
            for line in stream:
                if line == _END:
                    self._drained.set()
                    continue
                try:
                    event = parse_event(line)
                except ValueError:
                    continue  # the torn last line of a worker that was killed
                if isinstance(event, Failed):
                    self._failure = self._failure or event
                    self._end_once()
                    continue
                self.has_started = self.has_started or isinstance(event, Started)
                self.has_steps = self.has_steps or isinstance(event, StepDone)
                try:
                    self._pipe.send(event)
                except NoVerdictError:
                    self._end_once()  # the command is gone

    def _end_once(self) -> None:
        if not self._is_ending:
            self._is_ending = True
            timer = threading.Timer(_GRACE_SECONDS, self._on_failure)
            timer.daemon = True
            timer.start()
