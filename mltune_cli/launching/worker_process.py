"""A worker, or the launcher of several, as a process of its own: started, heard, stopped."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mltune_cli.errors import ExitCode, NoVerdictError, StoppedBySignalError
from mltune_cli.launching.child_end import await_end
from mltune_cli.launching.environment import worker_environment
from mltune_cli.launching.events import Event, Failed, Finished, parse_event
from mltune_cli.launching.failures import explained
from mltune_cli.launching.job import TrainingJob

_TAIL_LINES = 20
_GRACE_SECONDS = 5.0


class WorkerProcess:
    """One running worker, or the launcher of the several that the job asks for.

    Its events come from a pipe of their own; what it and its libraries print goes to `on_output`
    line by line, and the last lines are kept for the explanation of a crash.

    Args:
        job: what to train.
        on_output: called from a thread of its own with each printed line.
        inherited: the environment to start from; None is this process's own.
        settings: variables that the worker gets whatever its recipe says.
        cwd: working directory; None is the present one.
        umask: of the worker; -1 is the present one.
    """

    def __init__(
        self,
        job: TrainingJob,
        on_output: Callable[[str], None],
        inherited: Mapping[str, str] | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        umask: int = -1,
    ) -> None:
        self._on_output = on_output
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._asked: list[int] = []
        self._is_launcher = not job.processes.is_single
        room = "launching.elastic" if self._is_launcher else "training.worker"
        # Ours, so that it goes away even when the launcher is killed.
        self._control = tempfile.mkdtemp(prefix="mltune-") if self._is_launcher else None
        environment = worker_environment(job.recipe, os.environ if inherited is None else inherited)
        read_end, write_end = os.pipe()
        try:
            # -P: the working directory is not searched for modules, so a folder that happens to
            # hold a torch.py, or a checkout of mltune, changes nothing.
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    f"mltune_cli.{room}",
                    str(write_end),
                    *([self._control] if self._control else []),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                env={**environment, **(settings or {})},
                cwd=cwd,
                umask=umask,
                start_new_session=True,
            )
        except OSError as error:
            os.close(read_end)
            self._remove_control()
            raise NoVerdictError(f"the worker could not be started: {error.strerror}") from None
        finally:
            os.close(write_end)
        self._events = os.fdopen(read_end, "rb")
        self._watcher = threading.Thread(target=self._end_with_children, daemon=True)
        self._watcher.start()
        self._printer = threading.Thread(target=self._read_output, daemon=True)
        self._printer.start()
        with contextlib.suppress(BrokenPipeError):
            self._send(job)

    def _end_with_children(self) -> None:
        """Wait for the worker, end what it started and left behind, and only then let it go.

        Children hold on to the pipe: while one lives, `events` would wait for ever. Until the
        worker is let go of, nobody else can get its number, which is its group's as well.
        """
        await_end(self._process.pid)
        self._kill_group()
        self._process.wait()
        self._remove_control()

    def _remove_control(self) -> None:
        if self._control is not None:
            shutil.rmtree(self._control, ignore_errors=True)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _send(self, job: TrainingJob) -> None:
        assert self._process.stdin is not None  # noqa: S101 - opened above
        try:
            self._process.stdin.write(job.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()
        finally:
            # A launcher's stays open: requests to stop follow, and its end tells of ours.
            if not self._is_launcher:
                self._close_stdin()

    def _close_stdin(self) -> None:
        assert self._process.stdin is not None  # noqa: S101 - opened above
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _read_output(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - opened above
        with self._process.stdout as stream:
            for raw in stream:
                line = raw.decode("utf-8", errors="replace").rstrip("\n")
                self._tail.append(line)
                self._on_output(line)

    def events(self) -> Iterator[Event]:
        """Yield events until the worker ends.

        Raises:
            MltuneError: as the worker explained it.
            StoppedBySignalError: it was asked to stop.
            NoVerdictError: the worker died without an explanation; its last lines are named.
        """
        failure: Failed | None = None
        is_finished = False
        with self._events as stream:
            for line in stream:
                try:
                    event = parse_event(line)
                except ValueError:
                    break  # the torn last line of a killed worker
                if isinstance(event, Failed):
                    failure = failure or event
                    continue
                is_finished = is_finished or isinstance(event, Finished)
                yield event
        self._watcher.join()
        status = self._process.wait()
        self._printer.join(timeout=_GRACE_SECONDS)
        if failure is not None:
            raise explained(failure)
        if -status in self._asked:  # it came before the worker could take it in good order
            raise StoppedBySignalError(_stop_code(-status))
        if status != 0 or not is_finished:
            raise self._crash(status)

    def _crash(self, status: int) -> NoVerdictError:
        if status < 0:
            hint = " (out of memory?)" if -status == signal.SIGKILL else ""
            how = f"was killed by {_signal_name(-status)}{hint}"
        else:
            how = f"ended with status {status} and no explanation"
        lines = "".join(f"\n  | {line}" for line in self._tail)
        last = f"; its last lines:{lines}" if lines else ""
        return NoVerdictError(f"the worker {how}{last}")

    def ask_to_stop(self, number: int) -> None:
        """Pass a signal on: the worker finishes its step, writes a checkpoint, and ends."""
        self._asked.append(number)
        if not self._is_launcher:
            self._process.send_signal(number)
            return
        assert self._process.stdin is not None  # noqa: S101 - opened above
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(f"{int(_stop_code(number))}\n".encode())
            self._process.stdin.flush()

    def stop(self) -> None:
        """End the worker and everything it started, at once; safe to call twice."""
        if self._watcher.is_alive():
            self._kill_group()
        self._watcher.join(timeout=_GRACE_SECONDS)
        self._printer.join(timeout=_GRACE_SECONDS)
        self._close_stdin()


def _stop_code(number: int) -> ExitCode:
    return ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"
