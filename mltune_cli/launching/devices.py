"""What this machine offers to processes that run side by side. No torch."""

import os
import subprocess

from mltune_cli.recipe.schema import Recipe


def visible_gpus() -> list[str]:
    """Return identifiers of the NVIDIA GPUs that a child may use, for `CUDA_VISIBLE_DEVICES`."""
    restricted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if restricted is not None:
        return [name.strip() for name in restricted.split(",") if name.strip() not in ("", "-1")]
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return listing.stdout.split()


def side_by_side_slots(recipe: Recipe, processes: int) -> list[dict[str, str]]:
    """Return one set of environment variables for each run that fits beside the others.

    On GPUs each slot is as many devices as a run has processes; on a CPU it is as many cores as
    they have threads.

    Args:
        recipe: names device and threads.
        processes: of one run.
    """
    gpus = visible_gpus() if recipe.model.device != "cpu" else []
    if gpus:
        starts = range(0, len(gpus) - processes + 1, processes)
        groups = [gpus[first : first + processes] for first in starts]
        return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [{}] * max(1, (cores or 1) // (recipe.reproducibility.threads * processes))
