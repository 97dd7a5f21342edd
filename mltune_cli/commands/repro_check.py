"""`mltune repro-check`: a recipe, or any command, run several times, and the verdict."""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mltune_cli.commands.processes import process_shape
from mltune_cli.commands.train import new_job
from mltune_cli.errors import ExitCode, UsageError
from mltune_cli.launching.devices import side_by_side_slots
from mltune_cli.launching.job import ProcessShape, TrainingJob
from mltune_cli.recipe.layers import LoadedRecipe
from mltune_cli.recipe.schema import Recipe
from mltune_cli.rendering.reproduction import (
    ReproductionView,
    print_conditions,
    print_report,
    print_report_json,
)
from mltune_cli.reproduction.command_laboratory import CommandLaboratory
from mltune_cli.reproduction.conditions.draft import Condition
from mltune_cli.reproduction.conditions.parsing import listed_conditions, parse_conditions
from mltune_cli.reproduction.conditions.prepared import prepared_job
from mltune_cli.reproduction.explaining import explained, with_seed_note
from mltune_cli.reproduction.output_folder import output_folder, publish
from mltune_cli.reproduction.recipe_laboratory import RecipeLaboratory
from mltune_cli.reproduction.repeated_commands import RepeatedCommands
from mltune_cli.reproduction.repeated_runs import RepeatedRuns


def repro_check(
    loaded: LoadedRecipe,
    shape: ProcessShape,
    *,
    variations: Sequence[str] = (),
    run_count: int,
    output: Path,
    timeout_seconds: float | None,
    explain: bool,
    as_json: bool,
) -> ExitCode:
    """Run a recipe `run_count` times in fresh processes and compare every step.

    Args:
        loaded: the checked recipe.
        shape: how many processes compute each run.
        variations: what `--vary` was given.
        run_count: at least 2.
        output: folder for the runs and the report; replaced if a check of ours wrote it.
        timeout_seconds: of the whole check.
        explain: look for the operation and the cause where runs part.
        as_json: print the report as JSON instead of a tree.

    Raises:
        UsageError: recipe, data, model, variation or output folder cannot be used.
    """
    started = time.monotonic()
    conditions = parse_conditions(variations)
    _require_claim(loaded.recipe, shape.most_processes, "--nproc-per-node")
    output = Path(os.path.abspath(output))  # noqa: PTH100 - workers start at the same place
    view = ReproductionView(run_count)
    job = new_job(loaded, shape=shape)
    runs = RepeatedRuns(
        job=job,
        folder=output,
        run_count=run_count,
        slots=_slots(job, conditions),
        conditions=conditions,
        inherited=os.environ,
        timeout_seconds=timeout_seconds,
        on_event=view.show,
        on_output=view.show_output,
    )
    with output_folder(output):
        view.start()
        try:
            report = runs.check()
            if explain:
                deadline = _deadline(started, timeout_seconds)
                laboratory = RecipeLaboratory(output, os.environ, conditions, deadline, job)
                report = explained(report, laboratory, view.show_progress)
        finally:
            view.stop()
        publish(output, report)
    (print_report_json if as_json else print_report)(report)
    return report.exit_code


def _require_claim(recipe: Recipe, processes: int, flag: str) -> None:
    if recipe.model.base_precision == "nf4" and processes > 1:
        raise UsageError(
            f"{flag}: a 4-bit base (model.base_precision: nf4) is not claimed to repeat on several "
            "GPUs, so there is nothing to check; use one process"
        )


def _slots(job: TrainingJob, conditions: Sequence[Condition]) -> list[dict[str, str]]:
    """Return the slots for runs of which the larger ones must fit.

    Raises:
        UsageError: a condition cannot be had, such as more processes than there is work for.
    """
    with tempfile.TemporaryDirectory() as folder:
        varied = prepared_job(job, os.environ, conditions, Path(folder)).job
    processes = varied.processes.per_node
    try:
        process_shape(varied.recipe, per_node=processes)
    except UsageError as error:
        problem = error.message.removeprefix("--nproc-per-node: ")
        named = ", ".join(map(str, conditions))
        raise UsageError(f"--vary {named}: {problem}") from None
    _require_claim(varied.recipe, processes, f"--vary processes={processes}")
    threads = max(r.reproducibility.threads for r in (job.recipe, varied.recipe))
    largest = varied.recipe.with_values({"reproducibility.threads": threads})
    return side_by_side_slots(largest, max(processes, job.processes.per_node))


def _deadline(started: float, timeout_seconds: float | None) -> float | None:
    return None if timeout_seconds is None else started + timeout_seconds


def list_conditions() -> ExitCode:
    """Print the conditions that `--vary` takes."""
    print_conditions(listed_conditions())
    return ExitCode.OK


def repro_check_command(
    command: list[str],
    *,
    variations: Sequence[str] = (),
    run_count: int,
    output: Path,
    timeout_seconds: float | None,
    explain: bool,
    in_parallel: bool,
    as_json: bool,
) -> ExitCode:
    """Run somebody else's training command `run_count` times and compare every optimizer step.

    Args:
        command: program and arguments; `{run}` stands for the run's own folder.
        variations: what `--vary` was given.
        run_count: at least 2.
        output: folder for the runs and the report; replaced if a check of ours wrote it.
        timeout_seconds: of the whole check.
        explain: look for the operation and the cause where runs part.
        in_parallel: run all at once.
        as_json: print the report as JSON instead of a tree.

    Raises:
        UsageError: the command, a variation or the output folder cannot be used.
    """
    started = time.monotonic()
    conditions = parse_conditions(variations)
    output = Path(os.path.abspath(output))  # noqa: PTH100 - the command sees one path
    view = ReproductionView(run_count)
    runs = RepeatedCommands(
        command=command,
        conditions=conditions,
        folder=output,
        run_count=run_count,
        in_parallel=in_parallel,
        inherited=os.environ,
        timeout_seconds=timeout_seconds,
        on_output=view.show_output,
    )
    with output_folder(output):
        report = runs.check()
        deadline = _deadline(started, timeout_seconds)
        laboratory = CommandLaboratory(output, os.environ, conditions, deadline, command)
        if explain:
            report = explained(report, laboratory, view.show_progress)
        report = with_seed_note(report, laboratory.records(1, "main"))
        publish(output, report)
    (print_report_json if as_json else print_report)(report)
    return report.exit_code
