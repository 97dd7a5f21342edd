"""Options and help of `mltune init`."""

from pathlib import Path
from typing import Annotated

import typer

from mltune_cli.cli.program import app
from mltune_cli.errors import UsageError


@app.command()
def init(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Made where it is missing.", show_default=False)
    ] = ".",
    gpu: Annotated[
        bool, typer.Option("--gpu", help="A recipe that computes on CUDA where there is one.")
    ] = False,
    ci: Annotated[
        str, typer.Option("--ci", metavar="github|none", help="Whose workflow is written.")
    ] = "github",
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace files that differ; they stay as NAME.before-mltune."),
    ] = False,
) -> None:
    """Write recipe, rows, scripts, Dockerfile, locks and a workflow into a folder."""
    from mltune_cli.commands import init as command
    from mltune_cli.scaffolding.project_files import continuous_named

    if not folder:
        # As a path it would be the present folder, and what was meant is an unset variable.
        raise UsageError("DIR is empty; name a folder, or leave it out for the present one")
    code = command.init(Path(folder), gpu=gpu, ci=continuous_named(ci), force=force)
    raise typer.Exit(code)
