"""Options and help of `mltune repro-check`."""

from pathlib import Path
from typing import Annotated

import typer

from mltune_cli.cli.options import ConfigOption, JsonOption, ProcessesOption, SetOption
from mltune_cli.cli.program import app
from mltune_cli.errors import UsageError

_RunsOption = Annotated[
    int,
    typer.Option("--runs", min=1, help="How many runs are compared; with --against, 1 is enough."),
]
_OutputOption = Annotated[
    Path, typer.Option("--output", metavar="DIR", help="Where runs and report are kept.")
]
_TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", help="Give up after so many seconds.")
]
_ParallelOption = Annotated[
    bool, typer.Option("--parallel", help="Run a command's runs at once, not in turn.")
]
_VaryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--vary",
        metavar="NAME=VALUE",
        help="Give the runs after the first another condition; may be repeated. 'list' names them.",
    ),
]
_ExplainOption = Annotated[
    bool,
    typer.Option(
        "--explain/--no-explain", help="Where runs part, look for the operation and the cause."
    ),
]
_RecordOption = Annotated[
    Path | None,
    typer.Option("--record", metavar="FILE", help="Write the result into a golden file."),
]
_AgainstOption = Annotated[
    Path | None,
    typer.Option(
        "--against",
        metavar="FILE|RUN",
        help="Hold the result against a golden file or a run; a run alone is trained again.",
    ),
]
_NewEnvironmentOption = Annotated[
    bool,
    typer.Option(
        "--allow-new-environment",
        help="With --against: without a golden for this environment, the runs decide alone.",
    ),
]
_JunitOption = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Write the report as JUnit XML.")
]


@app.command("repro-check", epilog="With -- COMMAND, any training script is checked instead.")
def repro_check(
    context: typer.Context,
    config: ConfigOption = None,
    assignments: SetOption = None,
    runs: _RunsOption = 2,
    nproc_per_node: ProcessesOption = 1,
    output: _OutputOption = Path("repro_output"),
    timeout: _TimeoutOption = None,
    parallel: _ParallelOption = False,
    variations: _VaryOption = None,
    explain: _ExplainOption = True,
    record: _RecordOption = None,
    against: _AgainstOption = None,
    allow_new_environment: _NewEnvironmentOption = False,
    junit: _JunitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe several times and prove that every step is equal, bit for bit.

    Or run a command several times: mltune repro-check -- python train.py --output {run}
    """
    from mltune_cli.commands import repro_check as verb
    from mltune_cli.commands.check_options import CheckOptions, read_reference
    from mltune_cli.commands.processes import process_shape
    from mltune_cli.commands.replaying import replayed_command, replayed_recipe
    from mltune_cli.paths import is_folder
    from mltune_cli.recipe.layers import load_recipe

    if variations and "list" in variations:
        raise typer.Exit(verb.list_conditions())
    options = CheckOptions(
        run_count=runs, output=output, timeout_seconds=timeout, variations=variations or (),
        explain=explain, as_json=as_json, record=record, against=against,
        allow_new_environment=allow_new_environment, junit=junit,
    )  # fmt: skip
    options.require_consistent()
    flags = _training_flags(config, assignments or [], nproc_per_node)
    command = _command(context.obj, flags)
    is_replay = against is not None and is_folder(against) and not flags and command is None
    if is_replay and against is not None:
        command = replayed_command(against)
    if command is not None:
        reference = read_reference(options, flags, command)
        raise typer.Exit(verb.repro_check_command(command, reference, in_parallel=parallel))
    if parallel:
        raise UsageError("--parallel: is for commands; a recipe's runs share out cores and GPUs")
    reference = read_reference(options, flags, None)
    if is_replay and against is not None:
        loaded = replayed_recipe(against)
    else:
        loaded = load_recipe(config, {}, assignments or ())
    shape = process_shape(loaded.recipe, per_node=nproc_per_node)
    raise typer.Exit(verb.repro_check(loaded, shape, reference))


def _training_flags(config: Path | None, assignments: list[str], processes: int) -> list[str]:
    """Return the flags that say what is trained, as a user types them."""
    flags = [] if config is None else ["--config", str(config)]
    for text in assignments:
        flags += ["--set", text]
    return flags + (["--nproc-per-node", str(processes)] if processes > 1 else [])


def _command(given: list[str] | None, flags: list[str]) -> list[str] | None:
    """Return the command that follows `--`; None for a recipe."""
    if given is None:
        return None
    if not given:
        raise UsageError("--: a command must follow, such as: -- python train.py")
    if flags:
        raise UsageError(f"{flags[0]}: is for recipes, and a command follows --; drop one")
    return given
