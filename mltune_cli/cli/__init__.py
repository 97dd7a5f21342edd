"""The command line: options, help texts, exit codes. Nothing heavy is imported in this room."""

# Each module puts its commands on the app, and `--help` lists them in this order.
from mltune_cli.cli import train, check, image, runs, doctor, init  # noqa: F401, I001
from mltune_cli.cli.program import app


def main() -> None:
    """Entry point of the `mltune` command."""
    app(prog_name="mltune")
