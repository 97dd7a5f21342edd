"""Keeps the witness's own work apart from the training that it stands in."""

import functools
import signal
from collections.abc import Callable
from types import CodeType, TracebackType
from typing import Any

import torch


class Guard:
    """Does the witness's work where no dispatch mode sees it and no error of it ends the training.

    Hooks cannot be taken away while torch goes through them: after an error they stay, and do
    nothing. What a signal handler of the script raises meanwhile is the script's, and goes on.

    Args:
        on_fault: told once of what failed. None: it is raised by what the training called.
        end: called before that; leaves nothing on that makes the training slower.
    """

    def __init__(
        self, on_fault: Callable[[Exception], None] | None, end: Callable[[], None]
    ) -> None:
        self._on_fault = on_fault
        self._end = end
        self.is_off = False

    def do(self, work: Callable[[], None], *, in_modes: bool = False) -> None:
        """Do a piece of work, unless one before has failed.

        Args:
            work: what to do.
            in_modes: the dispatch modes stay as they are: the work enters or leaves one itself.
        """
        if self.is_off:
            return
        try:
            _require_no_capture()
            if in_modes:
                work()
                return
            with torch.utils._python_dispatch._disable_current_modes():
                work()
        except Exception as error:
            if self._on_fault is None:
                raise
            self.is_off = True
            self._end()
            self._on_fault(error)
            if _is_from_signal_handler(error):
                raise


def _require_no_capture() -> None:
    """Refuse to wait for a device that captures: it would spoil the capture, and the script."""
    is_initialized: Callable[[], bool] = torch.cuda.is_initialized
    if is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "steps are captured into a CUDA graph; what its replays compute cannot be seen"
        )


def _is_from_signal_handler(error: BaseException) -> bool:
    """Tell whether an error was raised in a signal handler that is installed in this process."""
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in handlers:
            return True
        traceback = traceback.tb_next
    return False


def _code(handler: Any) -> CodeType | None:
    """Return the code that a handler runs; None where it is none of Python's."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not hasattr(handler, "__code__"):
        handler = getattr(handler, "__func__", None) or vars(type(handler)).get("__call__")
    code = getattr(handler, "__code__", None)
    return code if isinstance(code, CodeType) else None
