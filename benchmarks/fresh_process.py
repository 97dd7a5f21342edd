"""Measurements in a process of their own: nothing that another one warmed, patched or leaked."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_REASON_LINES = 15


class FailedMeasurementError(Exception):
    """A measuring process failed; the message is the end of what it said."""


def measured_apart(
    script: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> dict[str, Any]:
    """Run a script with `--measure FILE` and its arguments; return what it writes to the file.

    Args:
        script: of this folder, by `__file__`.
        arguments: before `--measure`.
        environment: of the process.

    Raises:
        FailedMeasurementError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, script, *arguments, "--measure", str(path)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=dict(environment), check=False
        )
        if done.returncode or not path.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()[-_REASON_LINES:]
            raise FailedMeasurementError("\n".join(said) or f"ended with {done.returncode}")
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return figures
