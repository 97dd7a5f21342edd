"""Numbers on their way from the device to the program, which does not wait for them yet."""

import time
from collections.abc import Sequence
from typing import Any

import torch


class Readback:
    """Begins to copy a tensor from its device; what comes after it there is not waited for.

    Args:
        values: int64; is not changed until `rows` was asked.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._event: Any = None
        if values.device.type == "cuda":
            # Memory that the device can write to by itself; else the copy would wait.
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            new_event: Any = torch.cuda.Event
            self._event = new_event()
            self._event.record()
        else:
            self._host = values

    def rows(self) -> list[list[int]]:
        """Wait until the copy is here; return it, for a tensor of two dimensions."""
        if self._event is not None:
            self._event.synchronize()
        values: list[list[int]] = self._host.tolist()
        return values


def to_device(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return 64-bit words, signed or not, as an int64 tensor on a device; nobody waits."""
    signed = [number - (1 << 64) if number >> 63 > 0 else number for number in numbers]
    words = torch.tensor(signed, dtype=torch.int64)
    if device.type == "cuda":
        return words.pin_memory().to(device, non_blocking=True)
    return words


class Stopwatch:
    """Measures what a device takes, by its own clock where the program does not wait for it.

    It runs from the moment it is made; on a GPU, from when that comes to it.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._ends: list[Any] = []
        self.stop()

    def stop(self) -> None:
        """Stop; where the device is behind, as soon as it has done all that it was told so far."""
        if self._on_gpu:
            new_event: Any = torch.cuda.Event
            event = new_event(enable_timing=True)
            event.record()
            self._ends.append(event)
        else:
            self._ends.append(time.monotonic())

    def seconds(self) -> float:
        """Return the seconds between start and stop, once the device has come to the stop."""
        first, last = self._ends[0], self._ends[-1]
        passed: float = first.elapsed_time(last) / 1e3 if self._on_gpu else last - first
        return passed
