"""Options and help of `mltune repro-check`."""

from pathlib import Path
from typing import Annotated

import typer

from mltune_cli.cli.options import ConfigOption, JsonOption, ProcessesOption, SetOption
from mltune_cli.cli.program import app
from mltune_cli.errors import UsageError


@app.command("repro-check", epilog="With -- COMMAND, any training script is checked instead.")
def repro_check(
    context: typer.Context,
    config: ConfigOption = None,
    assignments: SetOption = None,
    runs: Annotated[int, typer.Option("--runs", min=2, help="How many runs are compared.")] = 2,
    nproc_per_node: ProcessesOption = 1,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Where runs and report are kept.")
    ] = Path("repro_output"),
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="Give up after so many seconds.")
    ] = None,
    parallel: Annotated[
        bool, typer.Option("--parallel", help="Run a command's runs at once, not in turn.")
    ] = False,
    variations: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="NAME=VALUE",
            help="Give the runs after the first another condition; may be repeated. "
            "'list' names them.",
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain/--no-explain", help="Where runs part, look for the operation and the cause."
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe several times and prove that every step is equal, bit for bit.

    Or run a command several times: mltune repro-check -- python train.py --output {run}
    """
    from mltune_cli.commands import repro_check as command
    from mltune_cli.commands.processes import process_shape
    from mltune_cli.recipe.layers import load_recipe

    if variations and "list" in variations:
        raise typer.Exit(command.list_conditions())
    if timeout is not None and timeout <= 0:
        raise UsageError("--timeout: must be more than 0 seconds")
    if context.obj is not None:
        if not context.obj:
            raise UsageError("--: a command must follow, such as: -- python train.py")
        for flag, is_given in (
            ("--config", config),
            ("--set", assignments),
            ("--nproc-per-node", nproc_per_node > 1),
        ):
            if is_given:
                raise UsageError(f"{flag}: is for recipes, and a command follows --; drop one")
        raise typer.Exit(
            command.repro_check_command(
                context.obj,
                variations=variations or (),
                run_count=runs,
                output=output,
                timeout_seconds=timeout,
                explain=explain,
                in_parallel=parallel,
                as_json=as_json,
            )
        )
    if parallel:
        raise UsageError("--parallel: is for commands; a recipe's runs share out cores and GPUs")
    loaded = load_recipe(config, {}, assignments or ())
    raise typer.Exit(
        command.repro_check(
            loaded,
            process_shape(loaded.recipe, per_node=nproc_per_node),
            variations=variations or (),
            run_count=runs,
            output=output,
            timeout_seconds=timeout,
            explain=explain,
            as_json=as_json,
        )
    )
