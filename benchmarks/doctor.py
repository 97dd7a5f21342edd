"""What the doctor costs: a full run, its torch-free checks, and what they cannot be faster than.

Commands are timed as whole processes, in turn, in one sitting; what counts are the ratios of
medians. `python benchmarks/doctor.py [--rounds N] [--json FILE]`, with `mltune` installed in the
environment of this Python. It ends with 1 where a bound of the promise is missed: six seconds for a
full run of the bundled recipe on two cores, one for all that needs no torch.
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

from mltune_cli.diagnosis.registry import CHECKS

MLTUNE = str(Path(sys.executable).parent / "mltune")
FULL_SECONDS, TORCH_FREE_SECONDS = 6.0, 1.0


def timed(command: list[str], folder: Path) -> float:
    """Run a command to its end; return its wall seconds.

    Raises:
        RuntimeError: it ended with anything but findings, so its time means nothing.
    """
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{command[:3]} ended with {done.returncode}: {done.stderr.decode()}")
    return seconds


def main() -> int:
    """Measure, print, and tell whether the bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch_free = [
        word for check in CHECKS if not check.needs_torch for word in ("--only", check.name)
    ]
    imports = "import mltune_cli.recipe.layers, typer, rich.console"
    timings = measured(
        {
            "import torch": [sys.executable, "-c", "import torch"],
            imports: [sys.executable, "-c", imports],
            "mltune doctor": [MLTUNE, "doctor"],
            "without torch": [MLTUNE, "doctor", *torch_free],
            "--only hash-seed": [MLTUNE, "doctor", "--only", "hash-seed"],
        },
        arguments.rounds,
        timed,
    )
    full, free = timings["mltune doctor"].median, timings["without torch"].median
    ratios = {
        "mltune doctor / import torch": full / timings["import torch"].median,
        "without torch / its imports": free / timings[imports].median,
    }
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    for timing in timings.values():
        print(
            f"{timing.name:<54} {timing.median:7.3f} s  ({timing.least:.3f} to {timing.most:.3f})"
        )
    for name, ratio in ratios.items():
        print(f"{name:<54} {ratio:7.2f}")
    if arguments.json:
        kept = {"timings": [asdict(one) for one in timings.values()], "ratios": ratios}
        arguments.json.write_text(json.dumps(kept, indent=2))
    holds = full < FULL_SECONDS and free < TORCH_FREE_SECONDS
    print(
        f"bounds {FULL_SECONDS:g} s and {TORCH_FREE_SECONDS:g} s: {'held' if holds else 'MISSED'}"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
