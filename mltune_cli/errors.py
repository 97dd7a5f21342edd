"""The one exception base, and the exit codes that every command answers with."""

import errno
from enum import IntEnum


class ExitCode(IntEnum):
    """What a finished `mltune` process tells its caller.

    A run that differs is a result (`NEGATIVE`); a run that failed is no verdict (`NO_VERDICT`), so
    that `git bisect run` skips it instead of blaming a commit.
    """

    OK = 0
    NEGATIVE = 1
    USAGE = 2
    NO_VERDICT = 125
    INTERRUPTED = 130
    TERMINATED = 143


class MltuneError(Exception):
    """Base of every error that is shown as one sentence; the exit code travels with it."""

    exit_code: ExitCode = ExitCode.NO_VERDICT

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UsageError(MltuneError):
    """The user's input is wrong: a flag, a recipe, a data row, a folder."""

    exit_code = ExitCode.USAGE


class RecipeValueError(UsageError):
    """A recipe value that cannot work, named by its dotted key.

    Raised where only the key is known; `place` puts the file and line (or the flag) in front.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


class NoVerdictError(MltuneError):
    """Something failed that is not the user's input, so nothing can be said about the result."""

    exit_code = ExitCode.NO_VERDICT


class StoppedBySignalError(BaseException):
    """A Ctrl-C or a SIGTERM ended the command.

    Like KeyboardInterrupt no `Exception`: no library that catches those may swallow it.
    """

    def __init__(self, exit_code: ExitCode, message: str | None = None) -> None:
        word = "interrupted" if exit_code is ExitCode.INTERRUPTED else "terminated"
        super().__init__(message or word)
        self.message = message or word
        self.exit_code = exit_code


_MACHINE_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
)  # fmt: skip
_MEMORY_PHRASES = ("out of memory", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of Python, of torch or of the system is about memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in text for phrase in _MEMORY_PHRASES)


def is_machine_failure(error: BaseException) -> bool:
    """Tell a machine that failed (full disk, no memory) from input that is wrong."""
    has_failed = isinstance(error, OSError) and error.errno in _MACHINE_ERRORS
    return has_failed or is_out_of_memory(error)
