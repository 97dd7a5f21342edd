"""Options and help of what is done with finished runs: `mltune diff` and `mltune export`."""

from pathlib import Path
from typing import Annotated

import typer

from mltune_cli.cli.options import JsonOption
from mltune_cli.cli.program import app


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A finished run's folder.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two finished runs: recipe, environment, data, steps and trained tensors."""
    from mltune_cli.commands import diff as command

    raise typer.Exit(command.diff(a, b, as_json=as_json))


@app.command()
def export(
    source: Annotated[
        str, typer.Argument(metavar="RUN", help="A finished run's folder, or mltune/tiny.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Write the base model with the adapter merged in.")
    ] = False,
    best: Annotated[
        bool, typer.Option("--best", help="Take the lowest held-out loss, not the last step.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="REPO_ID", help="Upload DIR to the Hugging Face hub."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see the upload; default: private.")
    ] = False,
) -> None:
    """Write what a run trained, with a model card, as a folder for other tools."""
    from mltune_cli.commands import export as command

    options = command.ExportOptions(merge=merge, best=best, push=push, public=public)
    raise typer.Exit(command.export(source, target, options))
