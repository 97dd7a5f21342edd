"""The Typer app: options, help texts, exit codes. Nothing heavy is imported up here."""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from mltune_cli import __version__
from mltune_cli.errors import ExitCode, MltuneError, StoppedBySignalError, UsageError

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Recipe in YAML; default: the smoke recipe."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a recipe value; may be repeated."),
]
ProcessesOption = Annotated[
    int,
    typer.Option("--nproc-per-node", "--nproc_per_node", min=1, help="Processes on this machine."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
# The base of every mistake in a command line, which Typer does not export by itself.
_CommandLineError: type[Any] = typer.BadParameter.mro()[1]


class _ExitCodeGroup(typer.core.TyperGroup):
    """Maps every way to end to the exit codes of the contract.

    Python ends an uncaught exception with 1, which here means "not reproducible": a crash must
    never read as a verdict.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the app and exit.

        Typer's own `main` is not called: it ends with 1 when the reader of our output goes away,
        and at the end of an input.
        """
        given = args[0] if args else kwargs.get("args")
        arguments = sys.argv[1:] if given is None else list(given)
        try:
            code = self._run(arguments)
        except (MltuneError, StoppedBySignalError) as error:
            code = error.exit_code
            _say(error.message)
        except _CommandLineError as error:
            code = ExitCode.USAGE
            _say_mistake(error, arguments)
        except KeyboardInterrupt:
            code = ExitCode.INTERRUPTED
        except (BrokenPipeError, SystemExit):
            # The reader of our output went away (`mltune ... | head`); nobody is left to tell.
            # rich answers that with an exit of its own, with the code that means "different".
            code = ExitCode.NO_VERDICT
            _discard_output()
        except Exception as error:  # noqa: BLE001 - a crash must not end with 1, as Python's would
            code = ExitCode.NO_VERDICT
            _say_internal(error)
        sys.exit(int(code))

    def _run(self, arguments: list[str]) -> int:
        code: int = ExitCode.OK
        arguments, command = _without_command(arguments)
        try:
            with self.make_context("mltune", list(arguments), obj=command) as context:
                self.invoke(context)
        except typer.Exit as end:
            code = end.exit_code
        sys.stdout.flush()
        return code


def _without_command(arguments: list[str]) -> tuple[list[str], list[str] | None]:
    """Cut off the command that follows `--`: the parser would take it for our arguments."""
    if "--" not in arguments or arguments[0] not in ("repro-check", "build-image"):
        return arguments, None
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def _discard_output() -> None:
    """Send what is still to be printed nowhere, so that Python can flush it and end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def _say_mistake(error: Any, arguments: list[str]) -> None:
    """Say what is wrong with the command line; without any argument, that is the whole help."""
    if not arguments:
        error.show()
        return
    command = error.ctx.command_path if error.ctx is not None else "mltune"
    _say(f"{error.format_message().rstrip('.')} (see {command} --help)")


def _say_internal(error: Exception) -> None:
    if os.environ.get("MLTUNE_TRACEBACK"):
        _say("".join(traceback.format_exception(error)).rstrip())
        return
    _say(
        f"internal error, please report it: {type(error).__name__}: "
        f"{' '.join(str(error).split())} (MLTUNE_TRACEBACK=1 shows where)"
    )


def _say(message: str) -> None:
    from mltune_cli.rendering.console import print_error

    print_error(message)


app = typer.Typer(
    cls=_ExitCodeGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fine-tune causal language models and prove that the training repeats, bit for bit.",
    epilog="Exit codes: 0 done or reproducible, 1 not reproducible, 2 wrong input, "
    "125 no verdict, 130 and 143 interrupted.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mltune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    from mltune_cli.commands.stopping import raise_on_signals

    raise_on_signals()


@app.command()
def train(
    config: ConfigOption = None,
    assignments: SetOption = None,
    model_name_or_path: Annotated[
        str | None,
        typer.Option(
            "--model-name-or-path", "--model_name_or_path", help="Hub id, folder or mltune/tiny."
        ),
    ] = None,
    train_file: Annotated[
        str | None, typer.Option("--train-file", "--train_file", help="Rows to train on.")
    ] = None,
    validation_file: Annotated[
        str | None, typer.Option("--validation-file", "--validation_file", help="Held-out rows.")
    ] = None,
    output_dir: Annotated[
        str | None,
        typer.Option("--output-dir", "--output_dir", help="Default: next free runs/RECIPE-NNN."),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", "--max_steps", help="Optimizer steps.")
    ] = None,
    per_device_train_batch_size: Annotated[
        int | None,
        typer.Option(
            "--per-device-train-batch-size",
            "--per_device_train_batch_size",
            help="Rows of one micro-batch.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the whole run.")] = None,
    logging_strategy: Annotated[
        str | None,
        typer.Option("--logging-strategy", "--logging_strategy", help="steps, epoch or no."),
    ] = None,
    logging_steps: Annotated[
        int | None,
        typer.Option("--logging-steps", "--logging_steps", help="Log every so many steps."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in the output folder.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the output folder's newest whole checkpoint."),
    ] = False,
    resume_from: Annotated[
        Path | None,
        typer.Option("--resume-from", metavar="DIR", help="Go on from this checkpoint."),
    ] = None,
    nproc_per_node: ProcessesOption = 1,
    nnodes: Annotated[
        str, typer.Option("--nnodes", metavar="N|MIN:MAX", help="Machines that train together.")
    ] = "1",
    node_rank: Annotated[
        int | None,
        typer.Option("--node-rank", "--node_rank", min=0, help="Which of them this one is."),
    ] = None,
    rdzv_endpoint: Annotated[
        str | None,
        typer.Option(
            "--rdzv-endpoint", "--rdzv_endpoint", metavar="HOST:PORT", help="On machine 0."
        ),
    ] = None,
    rdzv_timeout: Annotated[
        int, typer.Option("--rdzv-timeout", min=1, help="Seconds that machines wait to meet.")
    ] = 300,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts",
            "--max_restarts",
            min=0,
            help="How often dead processes are replaced before one fewer goes on.",
        ),
    ] = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe and where each value came from.")
    ] = False,
) -> None:
    """Fine-tune a model; with no argument, the bundled one on the bundled data."""
    from mltune_cli.commands import train as command
    from mltune_cli.commands.processes import process_shape
    from mltune_cli.recipe.layers import load_recipe
    from mltune_cli.recipe.original_flags import entries_from_flags

    flags = entries_from_flags(
        model_name_or_path=model_name_or_path,
        train_file=train_file,
        validation_file=validation_file,
        output_dir=output_dir,
        max_steps=max_steps,
        per_device_train_batch_size=per_device_train_batch_size,
        seed=seed,
        logging_strategy=logging_strategy,
        logging_steps=logging_steps,
    )
    loaded = load_recipe(config, flags, assignments or ())
    start = command.StartingPoint(overwrite, resume, resume_from)
    shape = process_shape(
        loaded.recipe,
        per_node=nproc_per_node,
        nodes=nnodes,
        node_rank=node_rank,
        rendezvous=rdzv_endpoint,
        join_seconds=rdzv_timeout,
        max_restarts=max_restarts,
    )
    raise typer.Exit(command.train(loaded, start, shape, dry_run=dry_run))


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


@app.command("build-image", epilog="With -- COMMAND, that is run in the image instead.")
def build_image(
    context: typer.Context,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Build on CUDA, with the CUDA build of torch.")
    ] = False,
    tag: Annotated[
        str | None, typer.Option("--tag", help="Default: mltune:repro-COMMIT, 8 digits of it.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="REF[@DIGEST]", help="Image to build on.")
    ] = None,
    build_args: Annotated[
        list[str] | None,
        typer.Option("--build-arg", metavar="NAME=VALUE", help="For an ARG; may be repeated."),
    ] = None,
    wheelhouse: Annotated[
        Path | None,
        typer.Option("--wheelhouse", metavar="DIR", help="Install these wheels, without an index."),
    ] = None,
    ca_bundle: Annotated[
        Path | None,
        typer.Option("--ca-bundle", metavar="FILE", help="Certificates to trust while building."),
    ] = None,
    builder: Annotated[
        str, typer.Option("--builder", metavar="sdk|buildx", help="The engine's own, or BuildKit.")
    ] = "sdk",
    platform: Annotated[
        str | None, typer.Option("--platform", metavar="OS/ARCH", help="Such as linux/arm64.")
    ] = None,
    dockerfile: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Default: ./Dockerfile, or mltune's own."),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Take no step from earlier builds.")
    ] = False,
    run: Annotated[
        bool, typer.Option("--run/--no-run", help="Run the smoke check in the image.")
    ] = True,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="RUN", help="Compare with this run of the host."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Limit of the run, such as 8g.")
    ] = None,
    network: Annotated[
        bool, typer.Option("--network", help="Let the run use the network.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Build twice from nothing, and compare.")
    ] = False,
    push: Annotated[
        bool, typer.Option("--push", help="Push the image once its run is good.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="Seconds for a build, and for the run.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="For image.json and what the run wrote.")
    ] = Path("image_output"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be built and run.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build the pinned image, run the smoke check in it, and bring the artifacts out."""
    from mltune_cli.commands import build_image as command
    from mltune_cli.imaging.plan import BuildOptions, builder_named

    if context.obj is not None and not context.obj:
        raise UsageError("--: a command must follow, such as: -- mltune train")
    if timeout is not None and timeout <= 0:
        raise UsageError("--timeout: must be more than 0 seconds")
    options = BuildOptions(
        gpu=gpu,
        tag=tag,
        base=base,
        build_args=build_args or (),
        wheelhouse=wheelhouse,
        ca_bundle=ca_bundle,
        builder=builder_named(builder),
        platform=platform,
        dockerfile=dockerfile,
        # Two builds of which one takes its steps from the other would be equal by themselves.
        use_cache=not (no_cache or verify),
        seconds=timeout,
    )
    trial = command.TrialOptions(
        run=run,
        command=context.obj or (),
        against=against,
        memory=memory,
        has_network=network,
        verify=verify,
        push=push,
    )
    code = command.build_image_command(
        options, trial, output=output, dry_run=dry_run, as_json=as_json
    )
    raise typer.Exit(code)


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


def main() -> None:
    """Entry point of the `mltune` command."""
    app(prog_name="mltune")
