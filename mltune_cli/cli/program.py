"""The Typer app: how every command ends, and what is said when it ends badly."""

import os
import sys
import traceback
from typing import Annotated, Any

import typer
import typer.core

from mltune_cli import __version__
from mltune_cli.errors import ExitCode, MltuneError, StoppedBySignalError

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
