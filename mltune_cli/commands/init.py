"""`mltune init`: recipe, rows, thin scripts, image, locks and workflow, written into a folder."""

from pathlib import Path

from mltune_cli.commands.stopping import second_signal_held
from mltune_cli.errors import ExitCode
from mltune_cli.paths import is_there, working_folder
from mltune_cli.rendering.console import print_notice
from mltune_cli.rendering.scaffolding import print_project
from mltune_cli.scaffolding.installation import pinned_source
from mltune_cli.scaffolding.project_files import (
    CHECK_COMMAND,
    WORKFLOW,
    Continuous,
    project_files,
)
from mltune_cli.scaffolding.writing import write_project


def init(folder: Path, *, gpu: bool, ci: Continuous, force: bool) -> ExitCode:
    """Write a new project and print what was done with each file.

    Args:
        folder: of the project; made where it is missing.
        gpu: the recipe computes on CUDA where there is one.
        ci: whether a workflow is written.
        force: replace files that differ, and keep them beside.

    Raises:
        UsageError: a file is in the way, or the folder cannot be written.
        NoVerdictError: the machine failed.
    """
    working_folder()  # without one no folder has a name
    title = folder.absolute().name or folder.resolve().name
    mltune = pinned_source()
    files = project_files(title, gpu=gpu, ci=ci, mltune=mltune)
    with second_signal_held():
        project = write_project(folder, files, force=force)
    print_project(project, CHECK_COMMAND)
    if ci == "github" and mltune is None:
        print_notice(
            "note: the workflow needs the repository variable MLTUNE, which says where mltune is "
            f"installed from; {WORKFLOW} tells how"
        )
    top = _repository_above(folder)
    if ci == "github" and top is not None:
        print_notice(
            f"note: GitHub reads workflows at the top of a repository alone, which is {top}; move "
            f"{folder / '.github'} there and set the working directory of its steps"
        )
    return ExitCode.OK


def _repository_above(folder: Path) -> Path | None:
    """Return the repository that the folder lies in without being its top."""
    place = folder.resolve()
    if is_there(place / ".git"):
        return None
    return next((parent for parent in place.parents if is_there(parent / ".git")), None)
