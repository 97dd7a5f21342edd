"""What NVIDIA's driver says of itself, asked in a process of its own: it may crash, or hang."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_ANSWER_SECONDS = 4.0


@dataclass(frozen=True)
class DriverFacts:
    """The driver, through its library.

    Attributes:
        library: why libcuda.so.1 could not be loaded; None where it was.
        status: what `cuInit` returned, 0 for success; None where it was not called.
        cuda: the newest CUDA that it runs; (0, 0) where it does not say.
        gpus: names of the devices that it shows.
        crash: how the process that asked it ended; None where it answered.
    """

    library: str | None = None
    status: int | None = None
    cuda: tuple[int, int] = (0, 0)
    gpus: tuple[str, ...] = ()
    crash: str | None = None

    @property
    def is_there(self) -> bool:
        """Whether the library could be loaded, however it did afterwards."""
        return self.library is None


def driver_facts(variables: Mapping[str, str]) -> DriverFacts:
    """Load libcuda as torch would, and ask it.

    Args:
        variables: the environment; `LD_LIBRARY_PATH` and `CUDA_VISIBLE_DEVICES` count.
    """
    command = [sys.executable, "-P", "-S", str(Path(__file__).with_name("driver_probe.py"))]
    try:
        done = subprocess.run(
            command, capture_output=True, env=dict(variables), timeout=_ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return DriverFacts(crash=f"did not answer within {_ANSWER_SECONDS:g} seconds")
    if done.returncode:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        return DriverFacts(crash=f"ended the process that asked it, with {how}")
    told = json.loads(done.stdout)
    return DriverFacts(
        library=told.get("library"),
        status=told.get("status"),
        cuda=tuple(told.get("cuda", (0, 0))),
        gpus=tuple(told.get("gpus", ())),
    )


@dataclass(frozen=True)
class SmiFacts:
    """What nvidia-smi says.

    Attributes:
        driver: version, such as `580.65.06`.
        gpus: names, one for each GPU of the machine.
        problem: what it said instead; None where it answered.
    """

    driver: str | None = None
    gpus: tuple[str, ...] = ()
    problem: str | None = None


def smi_facts() -> SmiFacts | None:
    """Ask nvidia-smi; None where there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"],
            capture_output=True, timeout=_ANSWER_SECONDS, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        return SmiFacts(problem=f"it did not answer within {_ANSWER_SECONDS:g} seconds")
    except OSError as error:
        return SmiFacts(problem=error.strerror or str(error))
    rows = _rows(done.stdout.decode("utf-8", errors="replace"))
    if done.returncode or not rows:
        said = " ".join((done.stderr + done.stdout).decode("utf-8", errors="replace").split())
        return SmiFacts(problem=said[:200] or f"it ended with status {done.returncode}")
    return SmiFacts(rows[0][0], tuple(name for _, name in rows))


def _rows(text: str) -> Sequence[tuple[str, str]]:
    return re.findall(r"(?m)^\s*(\d+(?:\.\d+)+)\s*,\s*(.*\S)", text)
