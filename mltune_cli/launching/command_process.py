"""Somebody else's training command as a process of its own, watched by the start-up hook."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mltune_cli.errors import UsageError
from mltune_cli.launching.child_end import await_end

HOOK_FOLDER = Path(__file__).parent.parent / "witness" / "injected"
_TAIL_LINES = 20
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.02


class CommandProcess:
    """One running command, in an environment that is left as it is but for the hook.

    Args:
        command: program and arguments.
        witness: folder that the hook writes to.
        inherited: the environment to start from.
        on_output: called from a thread of its own with each printed line.
        cwd: working directory; None is the present one.
        umask: of the command; -1 is the present one.

    Raises:
        UsageError: there is no such program, or it cannot be run.
    """

    def __init__(
        self,
        command: Sequence[str],
        witness: Path,
        inherited: Mapping[str, str],
        on_output: Callable[[str], None],
        *,
        cwd: Path | None = None,
        umask: int = -1,
    ) -> None:
        self._on_output = on_output
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._mark = f"MLTUNE_WITNESS_FOLDER={witness}".encode()
        path = inherited.get("PYTHONPATH")
        environment = {
            **inherited,
            "PYTHONPATH": os.pathsep.join([str(HOOK_FOLDER), path] if path else [str(HOOK_FOLDER)]),
            "MLTUNE_WITNESS_FOLDER": str(witness),
        }
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=cwd,
                umask=umask,
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(f"{command[0]}: cannot be run: {error.strerror}") from None
        self._watcher = threading.Thread(target=self._end_with_children, daemon=True)
        self._watcher.start()
        self._printer = threading.Thread(target=self._read_output, daemon=True)
        self._printer.start()

    def _end_with_children(self) -> None:
        """Wait for the command, and end what it started and left behind."""
        await_end(self._process.pid)
        self._kill_group()
        self._process.wait()

    def _kill_group(self) -> None:
        """Kill until nothing is left: a process may have been forking while it was looked for."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        deadline = time.monotonic() + _GRACE_SECONDS
        while (pids := list(self._descendants())) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)

    def _descendants(self) -> Iterator[int]:
        """Yield the processes that have our folder in their environment (Linux alone).

        Launchers put their workers into sessions of their own; no signal to the group gets there.
        """
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if self._mark in entry.read_bytes().split(b"\0"):
                    yield int(entry.parent.name)

    def _read_output(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - opened above
        with self._process.stdout as stream:
            for raw in stream:
                line = raw.decode("utf-8", errors="replace").rstrip("\n")
                self._tail.append(line)
                self._on_output(line)

    @property
    def is_running(self) -> bool:
        """Whether the command itself has not ended."""
        return self._watcher.is_alive()

    def failure(self) -> str | None:
        """Return how the command failed, with its last lines; None where it ended with 0."""
        status = self._process.wait()
        self._printer.join(timeout=_GRACE_SECONDS)
        if status == 0:
            return None
        if status < 0:
            hint = " (out of memory?)" if -status == signal.SIGKILL else ""
            how = f"was killed by signal {-status}{hint}"
        else:
            how = f"ended with status {status}"
        return f"the command {how}{self.last_lines()}"

    def last_lines(self) -> str:
        """Return what the command printed last, to be put behind a sentence."""
        # A copy: the printer goes on.
        lines = "".join(f"\n  | {line}" for line in self._tail.copy())
        return f"; its last lines:{lines}" if lines else ""

    def stop(self) -> None:
        """End the command and everything it started, at once; safe to call twice."""
        if self._watcher.is_alive():
            self._kill_group()
        self._watcher.join(timeout=2 * _GRACE_SECONDS)
        self._printer.join(timeout=_GRACE_SECONDS)
