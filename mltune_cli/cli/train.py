"""Options and help of `mltune train`."""

from pathlib import Path
from typing import Annotated

import typer

from mltune_cli.cli.options import ConfigOption, ProcessesOption, SetOption
from mltune_cli.cli.program import app


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
