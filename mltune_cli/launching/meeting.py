"""The meeting of several machines, watched from outside torch.

While torch connects to machine 0 the main thread sits in C++: no signal handler of Python's runs,
and a host that accepts connections and never answers is waited for without end.
"""

import contextlib
import os
import threading
import time

from mltune_cli.errors import ExitCode, NoVerdictError, StoppedBySignalError
from mltune_cli.launching.control_folder import ControlFolder
from mltune_cli.launching.events import EventPipe, Failed
from mltune_cli.launching.job import ProcessShape

# Machines beyond the least number are waited for this long; then training starts without them.
LAST_CALL_SECONDS = 15
# What torch bounds by itself is over by then.
_GRACE_SECONDS = 10.0
# A main thread that can hear a signal has ended everything by then.
_DEAF_SECONDS = 5.0


class Meeting:
    """Ends this process where machines neither meet nor give up; workers end with it.

    Args:
        shape: with one machine there is no meeting, and nothing is done.
        control: where the agent puts the workers' logs, as soon as machines have met.
        pipe: to the command.
    """

    def __init__(self, shape: ProcessShape, control: ControlFolder, pipe: EventPipe) -> None:
        self._shape = shape
        self._control = control
        self._pipe = pipe

    def watch(self) -> None:
        """Give up when the machines should have met, or failed to, for some time."""
        if self._shape.max_nodes > 1:
            seconds = self._shape.join_seconds + LAST_CALL_SECONDS + _GRACE_SECONDS
            timer = threading.Timer(seconds, self._give_up)
            timer.daemon = True
            timer.start()

    def _give_up(self) -> None:
        if not self._has_met():
            self._end(
                NoVerdictError(
                    f"--rdzv-endpoint {self._shape.rendezvous}: something listens there and does "
                    "not answer; is it machine 0, and is nothing else on that port?"
                )
            )

    def end_if_deaf(self, code: ExitCode) -> None:
        """End this process soon if its main thread does not, having been sent a signal."""
        if self._shape.max_nodes > 1:
            time.sleep(_DEAF_SECONDS)
            if not self._has_met():
                self._end(StoppedBySignalError(code))

    def _has_met(self) -> bool:
        return self._control.logs.is_dir() and any(self._control.logs.iterdir())

    def _end(self, error: NoVerdictError | StoppedBySignalError) -> None:
        with contextlib.suppress(NoVerdictError):  # the command may be gone
            self._pipe.send(Failed(int(error.exit_code), error.message))
        os._exit(int(error.exit_code))
