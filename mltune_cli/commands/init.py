"""`mltune init`: recipe, rows, Dockerfile, lock and workflow, written into a project."""

import os
import re
import shlex
from pathlib import Path

from mltune_cli.errors import ExitCode, UsageError
from mltune_cli.rendering.scaffolding import print_project
from mltune_cli.scaffolding.plan import planned_files
from mltune_cli.scaffolding.writing import write_files


def init(folder: Path, *, gpu: bool, ci: str | None, force: bool) -> ExitCode:
    """Write a project's files, and print what to type next.

    Args:
        folder: of the project; made where it does not exist.
        gpu: train on a GPU where there is one, and build the image on CUDA.
        ci: `github`, or None for no workflow.
        force: keep files that are in the way beside the new ones.

    Raises:
        UsageError: a flag is wrong, a file is in the way, or the folder cannot be written.
    """
    if ci not in (None, "github"):
        raise UsageError(f"--ci {ci}: must be github")
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._") or "project"
    files = planned_files(name, gpu=gpu, ci="github" if ci else None)
    written = write_files(folder, files, force=force)
    commands = [] if _is_here(folder) else [f"cd {shlex.quote(str(folder))}"]
    commands.append("mltune repro-check --config recipe.yaml")
    commands.append("mltune repro-check --config recipe.yaml --record golden.json")
    print_project(folder, written, commands)
    return ExitCode.OK


def _is_here(folder: Path) -> bool:
    return os.path.realpath(folder) == os.path.realpath(".")
