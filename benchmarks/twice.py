"""The same training twice, in processes of its own, through the command."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from cases import Case
from processes import different_files


def same_twice(case: Case, second_seed: int | None = None) -> list[str]:
    """Train twice and return the names of the repeated files that differ.

    Args:
        case: what to train; its counted steps are taken.
        second_seed: of the second run alone, to see that the comparison notices.

    Raises:
        RuntimeError: training failed.
    """
    runs = [_trained(case, "once"), _trained(case, "again", second_seed)]
    try:
        return different_files(*runs)
    finally:
        for run in runs:
            shutil.rmtree(run, ignore_errors=True)


def _trained(case: Case, name: str, seed: int | None = None) -> Path:
    run = case.folder / f"twice-{name}"
    pairs = case.pairs() | {"train.max_steps": str(case.steps)}
    if seed is not None:
        pairs["reproducibility.seed"] = str(seed)
    command = [sys.executable, "-m", "mltune_cli", "train", "--output-dir", str(run), "--overwrite"]
    for key, value in pairs.items():
        command += ["--set", f"{key}={value}"]
    environment = os.environ | {"MLTUNE_CACHE": str(case.cache)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"mltune train ended with {done.returncode}: {done.stderr}")
    return run
