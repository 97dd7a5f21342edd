"""The device that is measured: at rest, its memory, and the turns of steps that it takes."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Turn:
    """Some steps in a row, timed from a device at rest to a device at rest.

    Attributes:
        tokens: that the model read, without padding.
        peak_bytes: the most memory that was held meanwhile.
    """

    steps: int
    seconds: float
    tokens: int
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second."""
        return self.tokens / self.seconds


def wait_for_device() -> None:
    """Wait until the GPU has nothing left to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forget_peak() -> None:
    """Begin a new stretch: the memory that is held now is the most so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        # Linux sets the mark back when this number is written there; see proc(5).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Return the most that was held since: the GPU's memory, or without one the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return process_peak_bytes()


def process_peak_bytes() -> int:
    """Return the most resident memory of this process alone.

    Unlike what `getrusage` says, it does not begin with the size of the process that started it.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much memory a process held")
