"""The launcher of several workers: PyTorch's elastic agent, in a process of its own.

Run as `python -P -m mltune_cli.launching.elastic EVENT_DESCRIPTOR CONTROL_FOLDER`. The first line
of standard input is the job; a later line is the exit code that a request to stop gives the run.
The end of standard input means that the command is gone, and ends all workers.
"""

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from mltune_cli.errors import (
    ExitCode,
    MltuneError,
    NoVerdictError,
    StoppedBySignalError,
    UsageError,
)
from mltune_cli.launching.control_folder import ControlFolder
from mltune_cli.launching.event_relay import EventRelay
from mltune_cli.launching.events import EventPipe, Failed, Notice
from mltune_cli.launching.job import ProcessShape, TrainingJob
from mltune_cli.launching.meeting import LAST_CALL_SECONDS, Meeting
from mltune_cli.launching.network import use_interface_towards, use_loopback

# What a worker ends with that noticed the end of another one; see `training.worker`.
_LOST_PROCESS = 75


class _DiedError(Exception):
    """Workers died more often than they may; the message says which one, and how."""


class _EndedError(BaseException):
    """The workers were ended from outside: one explained a failure, or the command is gone.

    Raised by a signal handler, in the middle of anything: no `Exception`, which libraries catch
    while they are imported.
    """


def main() -> int:
    """Launch the workers until the run is done; return the process's exit status."""
    pipe = EventPipe(int(sys.argv[1]))
    signal.signal(signal.SIGTERM, _raise_ended)
    job = TrainingJob.model_validate_json(sys.stdin.buffer.readline())
    control = ControlFolder(Path(sys.argv[2]))
    control.job.write_text(job.model_dump_json(), encoding="utf-8")
    relay = EventRelay(control.events, pipe, on_failure=_end_workers)
    try:
        meeting = Meeting(job.processes, control, pipe)
        threading.Thread(
            target=_listen_to_command, args=(control, relay, meeting), daemon=True
        ).start()
        meeting.watch()
        try:
            _launch(job, control, relay, pipe)
        finally:
            # No workers are left to end: a late request must not cut the explanation short.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except (MltuneError, StoppedBySignalError) as error:
        return _explain(pipe, error)
    except _EndedError:  # before there was an agent, whose end `_launch` explains
        return _explain(pipe, StoppedBySignalError(control.stop_code() or ExitCode.TERMINATED))
    except Exception as error:  # noqa: BLE001 - the agent's own trouble; its traceback says little
        code = control.stop_code()
        if code is not None:  # the request came in the middle of an import, say
            return _explain(pipe, StoppedBySignalError(code))
        problem = " ".join(str(error).split())
        return _explain(pipe, NoVerdictError(f"the launcher: {type(error).__name__}: {problem}"))
    finally:
        relay.close()
        # The command does so as well, unless it is gone.
        shutil.rmtree(control.path, ignore_errors=True)
    return ExitCode.OK


def _explain(pipe: EventPipe, error: MltuneError | StoppedBySignalError) -> int:
    with contextlib.suppress(NoVerdictError):  # the command may be gone
        pipe.send(Failed(int(error.exit_code), error.message))
    return int(error.exit_code)


def _raise_ended(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - given
    raise _EndedError


def _end_workers() -> None:
    """End the agent's wait in the main thread; its own handler ends the workers first."""
    os.kill(os.getpid(), signal.SIGTERM)


def _listen_to_command(control: ControlFolder, relay: EventRelay, meeting: Meeting) -> None:
    for line in sys.stdin.buffer:
        with contextlib.suppress(ValueError):
            control.ask_to_stop(ExitCode(int(line)))
            if not relay.has_started:
                break  # nothing to finish: the workers are still loading, or not even there
    _end_workers()
    meeting.end_if_deaf(control.stop_code() or ExitCode.TERMINATED)


def _launch(job: TrainingJob, control: ControlFolder, relay: EventRelay, pipe: EventPipe) -> None:
    """Run the workers; on one machine, with one fewer each time that restarts are used up.

    Raises:
        MltuneError: as a worker explained it, or all attempts failed.
        StoppedBySignalError: the run was stopped.
    """
    shape = job.processes
    while True:
        relay.forget_steps()
        try:
            _run_agent(shape, control)
        except _DiedError as death:
            relay.raise_failure()
            if shape.max_nodes > 1 or shape.per_node == 1 or not relay.has_steps:
                raise NoVerdictError(f"{death}; {_way_on(shape)}") from None
            shape = shape.model_copy(update={"per_node": shape.per_node - 1})
            count = "one process" if shape.per_node == 1 else f"{shape.per_node} processes"
            pipe.send(Notice(f"{death}; training goes on with {count}"))
        except _EndedError:
            relay.raise_failure()
            code = control.stop_code()
            raise StoppedBySignalError(code or ExitCode.TERMINATED) from None
        else:
            relay.raise_failure()
            return


def _way_on(shape: ProcessShape) -> str:
    if shape.max_nodes > 1:
        return "start the machines again with --resume"
    if shape.per_node > 1:
        return "no step was done, so fewer processes were not tried; see what is printed above"
    return "no process is left to go on with; see what is printed above"


def _run_agent(shape: ProcessShape, control: ControlFolder) -> None:
    """Let PyTorch's elastic agent run the workers of this machine until all are done.

    Raises:
        UsageError: the port of the rendezvous is taken.
        NoVerdictError: machines did not meet.
        _DiedError: the workers died more often than they may.
        _EndedError: they were ended from outside.
    """
    # What torch and its agent would log is told by our own notices and errors.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    logging.disable(logging.CRITICAL)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Each round of workers gets a store of its own: in one that is shared by all rounds, a machine
    # that comes back would read what the workers before it wrote.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # One or the other: what is named first stays, and loopback leads to no other machine.
    if shape.rendezvous is None:
        address = use_loopback()
    else:
        address = use_interface_towards(shape.rendezvous)
    config = LaunchConfig(
        min_nodes=shape.min_nodes,
        max_nodes=shape.max_nodes,
        nproc_per_node=shape.per_node,
        run_id="mltune",
        rdzv_backend="c10d",
        rdzv_endpoint=shape.rendezvous or f"{address}:0",
        rdzv_configs={
            "is_host": shape.node_rank == 0,
            "timeout": shape.join_seconds,
            "join_timeout": shape.join_seconds,
            "last_call_timeout": LAST_CALL_SECONDS,
            "read_timeout": min(60, shape.join_seconds),
        },
        max_restarts=shape.max_restarts,
        logs_specs=DefaultLogsSpecs(log_dir=str(control.logs)),
        local_addr=address,
    )
    if control.stop_code() is not None:  # asked for in the middle of an import that caught it
        raise _EndedError
    worker = ["-P", "-m", "mltune_cli.training.worker", str(control.path), str(shape.node_rank)]
    try:
        elastic_launch(config, sys.executable)(*worker)
    except ChildFailedError as error:
        exits = {rank: failure.exitcode for rank, failure in error.failures.items()}
        raise _DiedError(_deaths(exits)) from None
    except SignalException:
        raise _EndedError from None
    except RendezvousError as error:
        raise _explained(error, shape) from None
    finally:
        signal.signal(signal.SIGTERM, _raise_ended)  # the agent has put its own there


def _deaths(exits: dict[int, int]) -> str:
    """Say which worker died first, and how."""
    # The agent ends the others by SIGTERM, unless they have noticed the loss already.
    consequences = (_LOST_PROCESS, -signal.SIGTERM)
    first = [rank for rank, code in sorted(exits.items()) if code not in consequences]
    if not first:
        return f"process {min(exits)} lost the others"
    rank = first[0]
    code = exits[rank]
    if code >= 0:
        return f"process {rank} ended with status {code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"process {rank} was killed by {_signal_name(-code)}{hint}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


def _explained(error: Exception, shape: ProcessShape) -> MltuneError:
    """Say why machines did not meet."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    where = f"--rdzv-endpoint {shape.rendezvous}"
    if "address already in use" in str(cause).lower() or "EADDRINUSE" in str(cause):
        return UsageError(f"{where}: the port is taken on this machine; choose another")
    if shape.node_rank != 0 and type(error).__name__ == "RendezvousConnectionError":
        return NoVerdictError(
            f"{where}: machine 0 does not answer there; is it started, and is the port open?"
        )
    if type(error).__name__ in ("RendezvousTimeoutError", "RendezvousClosedError"):
        return NoVerdictError(
            f"{where}: fewer than {shape.min_nodes} machines came within {shape.join_seconds} "
            "seconds; start them all, or raise --rdzv-timeout"
        )
    first_line = (str(cause).splitlines() or [type(cause).__name__])[0]
    return NoVerdictError(f"{where}: the machines did not meet: {first_line}")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as in the worker: taking torch down in good order would take a second
