"""Failures that a child process told of, as the errors that the command raises."""

from mltune_cli.errors import (
    ExitCode,
    MltuneError,
    NoVerdictError,
    StoppedBySignalError,
    UsageError,
)
from mltune_cli.launching.events import Failed


def explained(failure: Failed) -> MltuneError | StoppedBySignalError:
    """Return the error that a worker told of, with its own exit code."""
    if failure.exit_code == ExitCode.USAGE:
        return UsageError(failure.message)
    if failure.exit_code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED):
        return StoppedBySignalError(ExitCode(failure.exit_code), failure.message)
    return NoVerdictError(failure.message)
