"""What the command costs: start-up, one training, and a check against one training.

Commands are timed as whole processes, in turn, in one sitting; what counts are the ratios of
medians. `python benchmarks/cli.py [--rounds N] [--json FILE]`, with `mltune` installed in the
environment of this Python.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from turns import measured

MLTUNE = str(Path(sys.executable).parent / "mltune")


def timed(command: list[str], folder: Path) -> float:
    """Run a command to its end; return its wall seconds.

    Raises:
        subprocess.CalledProcessError: it failed, so its time means nothing.
    """
    environment = os.environ | {"MLTUNE_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    start_up = measured(
        {
            "import typer, rich.console": [sys.executable, "-c", "import typer, rich.console"],
            "mltune --help": [MLTUNE, "--help"],
            "mltune train --help": [MLTUNE, "train", "--help"],
        },
        arguments.rounds * 3,
        timed,
    )
    work = measured(
        {"mltune train": [MLTUNE, "train"], "mltune repro-check": [MLTUNE, "repro-check"]},
        arguments.rounds,
        timed,
    )
    ratios = {
        "mltune --help / import typer, rich.console": start_up["mltune --help"].median
        / start_up["import typer, rich.console"].median,
        "mltune repro-check / mltune train": work["mltune repro-check"].median
        / work["mltune train"].median,
    }
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    for timing in (start_up | work).values():
        print(
            f"{timing.name:<44} {timing.median:7.3f} s  ({timing.least:.3f} to {timing.most:.3f})"
        )
    for name, ratio in ratios.items():
        print(f"{name:<44} {ratio:7.2f}")
    if arguments.json:
        timings = [asdict(timing) for timing in (start_up | work).values()]
        arguments.json.write_text(json.dumps({"timings": timings, "ratios": ratios}, indent=2))


if __name__ == "__main__":
    main()
