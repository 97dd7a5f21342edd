"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

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
