"""`mltune repro-check`: a recipe, or any command, run several times, and the verdict."""

import os
from pathlib import Path

from mltune_cli.commands.train import new_job
from mltune_cli.errors import ExitCode, UsageError
from mltune_cli.launching.devices import side_by_side_slots
from mltune_cli.launching.job import ProcessShape
from mltune_cli.recipe.layers import LoadedRecipe
from mltune_cli.rendering.reproduction import (
    ReproductionView,
    print_report,
    print_report_json,
)
from mltune_cli.reproduction.output_folder import output_folder, publish
from mltune_cli.reproduction.repeated_commands import RepeatedCommands
from mltune_cli.reproduction.repeated_runs import RepeatedRuns


def repro_check(
    loaded: LoadedRecipe,
    shape: ProcessShape,
    *,
    run_count: int,
    output: Path,
    timeout_seconds: float | None,
    as_json: bool,
) -> ExitCode:
    """Run a recipe `run_count` times in fresh processes and compare every step.

    Args:
        loaded: the checked recipe.
        shape: how many processes compute each run.
        run_count: at least 2.
        output: folder for the runs and the report; replaced if a check of ours wrote it.
        timeout_seconds: of the whole check.
        as_json: print the report as JSON instead of a tree.

    Raises:
        UsageError: recipe, data, model or output folder cannot be used.
    """
    if loaded.recipe.model.base_precision == "nf4" and not shape.is_single:
        raise UsageError(
            "--nproc-per-node: a 4-bit base (model.base_precision: nf4) is not claimed to repeat "
            "on several GPUs, so there is nothing to check; use one process"
        )
    output = Path(os.path.abspath(output))  # noqa: PTH100 - workers start at the same place
    view = ReproductionView(run_count)
    runs = RepeatedRuns(
        job=new_job(loaded, shape=shape),
        folder=output,
        run_count=run_count,
        slots=side_by_side_slots(loaded.recipe, shape.per_node),
        inherited=os.environ,
        timeout_seconds=timeout_seconds,
        on_event=view.show,
        on_output=view.show_output,
    )
    with output_folder(output):
        view.start()
        try:
            report = runs.check()
        finally:
            view.stop()
        publish(output, report)
    (print_report_json if as_json else print_report)(report)
    return report.exit_code


def repro_check_command(
    command: list[str],
    *,
    run_count: int,
    output: Path,
    timeout_seconds: float | None,
    in_parallel: bool,
    as_json: bool,
) -> ExitCode:
    """Run somebody else's training command `run_count` times and compare every optimizer step.

    Args:
        command: program and arguments; `{run}` stands for the run's own folder.
        run_count: at least 2.
        output: folder for the runs and the report; replaced if a check of ours wrote it.
        timeout_seconds: of the whole check.
        in_parallel: run all at once.
        as_json: print the report as JSON instead of a tree.

    Raises:
        UsageError: the command or the output folder cannot be used.
    """
    output = Path(os.path.abspath(output))  # noqa: PTH100 - the command sees one path
    view = ReproductionView(run_count)
    runs = RepeatedCommands(
        command=command,
        folder=output,
        run_count=run_count,
        in_parallel=in_parallel,
        inherited=os.environ,
        timeout_seconds=timeout_seconds,
        on_output=view.show_output,
    )
    with output_folder(output):
        report = runs.check()
        publish(output, report)
    (print_report_json if as_json else print_report)(report)
    return report.exit_code
