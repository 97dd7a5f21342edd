"""`python -m mltune_cli` is the `mltune` command."""

from mltune_cli.cli import main

main()
