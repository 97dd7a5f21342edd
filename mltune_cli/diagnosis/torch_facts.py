"""What torch says of itself, asked in a process of its own: `mltune` never imports it."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

_TAIL_LINES = 6


class GpuFacts(BaseModel):
    """One GPU that torch sees.

    Attributes:
        capability: of its architecture, such as (9, 0).
        free_bytes: None where it was not asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int | None = None


class TorchFacts(BaseModel):
    """What torch said.

    Attributes:
        problem: why it could not be asked; the rest is empty then.
        cuda: the CUDA that it is built with; None for a CPU build.
        architectures: it has kernels for, such as `sm_90` and `compute_120`.
        gpus: those it can use.
        gpu_problem: what it warned of while it looked for GPUs.
        instruction_set: its CPU kernels are chosen for.
        settings: what decides bits, as it stands after the import.
        import_seconds: that the import took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: str | None = None
    version: str = ""
    cuda: str | None = None
    hip: str | None = None
    architectures: list[str] = []
    gpus: list[GpuFacts] = []
    gpu_problem: str | None = None
    instruction_set: str = ""
    settings: dict[str, str | int | bool] = {}
    import_seconds: float = 0.0


class TorchProbe:
    """The process that asks torch; started at once, waited for later.

    Args:
        environment: as a worker of mltune's would get it.
        asks_memory: whether the first GPU's free memory is asked for, which takes a context on it.
    """

    def __init__(self, environment: Mapping[str, str], *, asks_memory: bool) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `facts`
        read_end, write_end = os.pipe()
        self._answer = os.fdopen(read_end, "rb")
        arguments = [str(write_end), "memory" if asks_memory else ""]
        try:
            # -P: a folder that happens to hold a torch.py changes nothing.
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [sys.executable, "-P", "-m", "mltune_cli.diagnosis.torch_probe", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                env=dict(environment),
                start_new_session=True,
            )
            self._problem = ""
        except OSError as error:
            self._process, self._problem = None, error.strerror or str(error)
        finally:
            os.close(write_end)

    def facts(self) -> TorchFacts:
        """Wait for the answer, for as long as it takes; called once."""
        if self._process is None:
            return TorchFacts(problem=f"no process could be started: {self._problem}")
        with self._answer, self._output:
            answer = self._answer.read()
            status = self._process.wait()
            try:
                return TorchFacts.model_validate_json(answer)
            except ValidationError:
                return TorchFacts(problem=f"{_ending(status)}{self._last_lines()}")

    def _last_lines(self) -> str:
        self._output.seek(0)
        text = self._output.read().decode("utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()][-_TAIL_LINES:]
        return f"; it printed: {' | '.join(lines)}" if lines else ""

    def stop(self) -> None:
        """End the process, whatever it is doing; safe to call twice."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _ending(status: int) -> str:
    if status < 0:
        return f"Python was killed by signal {-status} while it imported torch"
    return f"Python ended with status {status} while it imported torch"
