"""Options and help of `mltune init`."""

from pathlib import Path
from typing import Annotated

import typer

from mltune_cli.cli.program import app


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The project's folder.")] = Path(),
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Train on a GPU where there is one; a CUDA image.")
    ] = False,
    ci: Annotated[
        str | None, typer.Option("--ci", metavar="github", help="Also write this CI's workflow.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep files that are in the way beside the new ones.")
    ] = False,
) -> None:
    """Write recipe, rows, Dockerfile, lock and workflow into a project."""
    from mltune_cli.commands.init import init as verb

    raise typer.Exit(verb(folder, gpu=gpu, ci=ci, force=force))
