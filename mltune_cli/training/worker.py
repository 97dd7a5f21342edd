"""The worker process: reads a job from standard input, trains, explains its failures.

Run as `python -P -m mltune_cli.training.worker EVENT_DESCRIPTOR`, in the environment that
`launching.environment` builds.
"""

import contextlib
import errno
import gc
import os
import sys
import warnings

from mltune_cli.errors import (
    ExitCode,
    MltuneError,
    NoVerdictError,
    RecipeValueError,
    StoppedBySignalError,
    is_out_of_memory,
)
from mltune_cli.launching.events import EventPipe, Failed
from mltune_cli.launching.job import TrainingJob
from mltune_cli.recipe.layers import place_error
from mltune_cli.training.stopping import StopRequest

_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def main() -> int:
    """Run the job; return the process's exit status."""
    pipe = EventPipe(int(sys.argv[1]))
    stop = StopRequest()
    origins: dict[str, str] = {}
    try:
        job = TrainingJob.model_validate_json(sys.stdin.buffer.read())
        origins = job.origins
        _train(job, pipe, stop)
    except RecipeValueError as error:
        return _explain(pipe, place_error(error, origins))
    except MltuneError as error:
        return _explain(pipe, error)
    except OSError as error:
        if error.errno not in _STORAGE_ERRORS:
            raise
        where = error.filename or "the output folder"
        return _explain(pipe, MltuneError(f"{where}: {os.strerror(error.errno)}"))
    except StoppedBySignalError as error:
        return _explain(pipe, error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        on_gpu = "cuda" in str(error).lower()
        return _explain(
            pipe, NoVerdictError(_memory_advice("the GPU" if on_gpu else "the machine"))
        )
    return ExitCode.OK


def _train(job: TrainingJob, pipe: EventPipe, stop: StopRequest) -> None:
    # The libraries make millions of objects while they are imported, and none of them is garbage:
    # looking for it takes a quarter of the time.
    gc.disable()
    from mltune_cli.training.determinism import settle

    settle(job.recipe.reproducibility.threads)
    # Deprecations inside the libraries are for their authors; the rest reaches the user.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from mltune_cli.training.loop import train

    gc.freeze()
    gc.enable()
    train(job, pipe, stop)


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
