"""The worker process: reads a job, trains, explains its failures.

Run as `python -P -m mltune_cli.training.worker EVENT_DESCRIPTOR` with the job on standard input,
or, by the elastic launcher, as `... worker CONTROL_FOLDER NODE_RANK`; in the environment that
`launching.environment` builds.
"""

import contextlib
import ctypes
import errno
import gc
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mltune_cli.errors import (
    ExitCode,
    MltuneError,
    NoVerdictError,
    RecipeValueError,
    StoppedBySignalError,
    is_out_of_memory,
)
from mltune_cli.launching.control_folder import ControlFolder, Round
from mltune_cli.launching.events import EventPipe, Failed, Notice
from mltune_cli.launching.job import TrainingJob
from mltune_cli.recipe.layers import place_error
from mltune_cli.training.stopping import SignalledStop, StopSource, WrittenStop

# Ends a worker that noticed the end of another: the launcher looks for the one that died first.
LOST_PROCESS = 75
_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@dataclass(frozen=True)
class _Post:
    """Where this process was put.

    Attributes:
        control: shared with the launcher; None for a process that is alone.
        node_rank: of this machine among the run's.
    """

    pipe: EventPipe
    stop: StopSource
    read_job: Callable[[], bytes]
    control: ControlFolder | None = None
    node_rank: int = 0


def _take_post(arguments: list[str]) -> _Post:
    if arguments[0].isdecimal():
        return _Post(EventPipe(int(arguments[0])), SignalledStop(), sys.stdin.buffer.read)
    control = ControlFolder(Path(arguments[0]))
    _die_with_parent()
    pipe = EventPipe(os.open(control.events, os.O_WRONLY))
    return _Post(pipe, WrittenStop(control), control.job.read_bytes, control, int(arguments[1]))


def _die_with_parent() -> None:
    """Let the kernel end this process when the launcher ends, even by SIGKILL (Linux alone).

    The launcher's workers are in sessions of their own, so ending its process group does not
    reach them.
    """
    set_parent_death_signal = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(LOST_PROCESS)


def main() -> int:
    """Run the job; return the process's exit status."""
    post = _take_post(sys.argv[1:])
    origins: dict[str, str] = {}
    try:
        job = TrainingJob.model_validate_json(post.read_job())
        origins = job.origins
        _train(job, post)
    except RecipeValueError as error:
        return _explain(post.pipe, place_error(error, origins))
    except (MltuneError, StoppedBySignalError) as error:
        return _explain(post.pipe, error)
    except OSError as error:
        if error.errno not in _STORAGE_ERRORS:
            if post.control is None:
                raise
            return _end_among_others(error, post.pipe)
        where = error.filename or "the output folder"
        return _explain(post.pipe, MltuneError(f"{where}: {os.strerror(error.errno)}"))
    except Exception as error:
        if is_out_of_memory(error):
            on_gpu = "cuda" in str(error).lower()
            where = "the GPU" if on_gpu else "the machine"
            return _explain(post.pipe, NoVerdictError(_memory_advice(where)))
        if post.control is None:
            raise
        return _end_among_others(error, post.pipe)
    return ExitCode.OK


def _end_among_others(error: Exception, pipe: EventPipe) -> int:
    """Return the status of a worker that failed among several.

    A device that failed, or another process that is gone, is for the launcher to go on from. Any
    other exception would come again: it ends the run.
    """
    import torch

    from mltune_cli.training.processes import is_loss_of_process

    if is_loss_of_process(error):
        return LOST_PROCESS
    traceback.print_exc()
    if isinstance(error, torch.AcceleratorError):
        return 1
    rank = os.environ.get("RANK", "0")
    problem = " ".join(str(error).split())
    return _explain(
        pipe, NoVerdictError(f"process {rank} failed: {type(error).__name__}: {problem}")
    )


def _train(job: TrainingJob, post: _Post) -> None:
    # The libraries make millions of objects while they are imported, and none of them is garbage:
    # looking for it takes a quarter of the time.
    gc.disable()
    from mltune_cli.training.determinism import settle

    settle(job.recipe.reproducibility.threads)
    # Deprecations inside the libraries are for their authors; the rest reaches the user.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from mltune_cli.training.loop import Surroundings, train
    from mltune_cli.training.processes import join_processes
    from mltune_cli.training.resuming import after_restart

    gc.freeze()
    gc.enable()
    around = Surroundings(post.pipe, post.stop)
    if post.control is not None:
        claimed = post.control.run_folder()
        if claimed is not None:
            job = after_restart(job, claimed)
        if os.environ["LOCAL_RANK"] == "0":
            _tell_of_restart(post.control, post.pipe, has_run=claimed is not None)
        around = Surroundings(
            post.pipe,
            post.stop,
            partial(join_processes, node_rank=post.node_rank),
            post.control.remember_run_folder,
        )
    train(job, around)


def _tell_of_restart(control: ControlFolder, pipe: EventPipe, *, has_run: bool) -> None:
    """Say why these workers follow others, on the machine that has the run folder."""
    # Both are set by the elastic agent.
    this = Round(int(os.environ["WORLD_SIZE"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
    earlier = control.begin_round(this)
    if has_run and earlier is not None:
        pipe.send(Notice(f"{this.change_since(earlier)}, and all were started again"))


def _explain(pipe: EventPipe, error: MltuneError | StoppedBySignalError) -> int:
    with contextlib.suppress(MltuneError):
        pipe.send(Failed(int(error.exit_code), error.message))
    return int(error.exit_code)


def _memory_advice(where: str) -> str:
    return (
        f"{where} is out of memory; lower train.micro_batch_size or data.max_length, or set "
        "train.activation_checkpointing=true"
    )


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is written and closed. Taking torch and its thousand modules down in good order
    # would take another second.
    os._exit(status)
