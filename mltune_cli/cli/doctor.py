"""Options and help of `mltune doctor`."""

from typing import Annotated

import typer

from mltune_cli.cli.options import ConfigOption, JsonOption, SetOption
from mltune_cli.cli.program import app
from mltune_cli.errors import UsageError


@app.command()
def doctor(
    config: ConfigOption = None,
    assignments: SetOption = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="CHECK", help="Run this check alone; may be repeated."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Print Markdown for a bug report, without secrets.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check machine, packages, GPU, settings, Docker, recipe and data; say what mends them."""
    from mltune_cli.commands import doctor as command

    if report and as_json:
        raise UsageError("--report: prints Markdown, and --json was given as well; drop one")
    output: command.OutputKind = "json" if as_json else "report" if report else "tree"
    code = command.doctor(config, assignments or (), only=only or (), strict=strict, output=output)
    raise typer.Exit(code)
