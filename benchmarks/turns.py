"""Commands timed in turn, for the benchmarks that start whole processes."""

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Timing:
    """Wall seconds of one command over several rounds."""

    name: str
    median: float
    least: float
    most: float


def measured(
    commands: Mapping[str, list[str]], rounds: int, timed: Callable[[list[str], Path], float]
) -> dict[str, Timing]:
    """Time commands in turn, so that a drifting machine moves all of them; one round is warm-up.

    Args:
        commands: by the names that the figures get.
        rounds: that count.
        timed: runs a command in a folder and returns its wall seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for round_number in range(rounds + 1):
            for name, command in commands.items():
                taken = timed(command, Path(folder))
                if round_number:
                    seconds[name].append(taken)
    return {
        name: Timing(name, statistics.median(values), min(values), max(values))
        for name, values in seconds.items()
    }
