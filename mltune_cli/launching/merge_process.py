"""The process that merges an adapter into its base: started, listened to, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO

from pydantic import BaseModel, ConfigDict

from mltune_cli.errors import NoVerdictError
from mltune_cli.launching.environment import worker_environment
from mltune_cli.launching.events import Failed, Notice, parse_event
from mltune_cli.launching.failures import explained
from mltune_cli.launching.held_signals import held_signals
from mltune_cli.recipe.schema import Recipe

_TAIL_LINES = 20


class MergeJob(BaseModel):
    """One merge.

    Attributes:
        recipe: of the run.
        revision: the base's commit, where it came from the hub.
        model_digest: of the base that the adapter was trained on.
        tokenizer_digest: of the tokenizer that it was trained with.
        run: the run folder as the user named it, for messages.
        adapter: folder of the adapter.
        output: an empty folder that the model is written into.
        target: what `output` will be called, for messages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    revision: str | None
    model_digest: str
    tokenizer_digest: str
    run: str
    adapter: str
    output: str
    target: str


def run_merge(job: MergeJob, on_notice: Callable[[str], None]) -> None:
    """Merge in a process of its own, and return when the model is written.

    Args:
        job: what to merge.
        on_notice: called with each line about how far it is.

    Raises:
        MltuneError: as the process explained it.
        NoVerdictError: it died without an explanation; its last lines are named.
    """
    read_end, write_end = os.pipe()
    # A file, not a pipe, takes what libraries print: nobody has to read it while they print.
    with tempfile.TemporaryFile() as output, os.fdopen(read_end, "rb") as events:
        process = None
        try:
            with held_signals():
                process = _start(job, write_end, output)
            failure = _listen(process, job, events, on_notice)
        finally:
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if failure is not None:
            raise explained(failure)
        if process.returncode != 0:
            raise _crash(process.returncode, output)


def _start(job: MergeJob, write_end: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "mltune_cli.training.merging", str(write_end)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(write_end,),
            env=worker_environment(job.recipe, os.environ),
            start_new_session=True,
        )
    except OSError as error:
        raise NoVerdictError(f"the merge could not be started: {error.strerror}") from None
    finally:
        os.close(write_end)


def _listen(
    process: subprocess.Popen[bytes],
    job: MergeJob,
    events: IO[bytes],
    on_notice: Callable[[str], None],
) -> Failed | None:
    """Send the job, pass notices on until the process ends, and return its explanation."""
    failure = None
    assert process.stdin is not None  # noqa: S101 - opened by `run_merge`
    with contextlib.suppress(BrokenPipeError), process.stdin as stream:
        stream.write(job.model_dump_json().encode())
    for line in events:
        try:
            event = parse_event(line)
        except ValueError:
            break  # the torn last line of a killed process
        if isinstance(event, Notice):
            on_notice(event.message)
        elif isinstance(event, Failed):
            failure = event
    process.wait()
    return failure


def _crash(status: int, output: IO[bytes]) -> NoVerdictError:
    output.seek(0)
    tail = output.read().decode("utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    lines = "".join(f"\n  | {line}" for line in tail)
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    if -status == signal.SIGKILL:
        how += " (out of memory?)"
    return NoVerdictError(f"the merge {how}" + (f"; its last lines:{lines}" if lines else ""))
