"""`mltune repro-check`: a recipe, or any command, run several times, and the verdict."""

import functools
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mltune_cli import __version__
from mltune_cli.command_secrets import secrets_in, text_without
from mltune_cli.commands.check_options import CheckOptions, Reference
from mltune_cli.commands.git_facts import current_commit
from mltune_cli.commands.processes import process_shape
from mltune_cli.commands.train import new_job
from mltune_cli.errors import ExitCode, NoVerdictError, UsageError
from mltune_cli.launching.devices import side_by_side_slots
from mltune_cli.launching.job import ProcessShape, TrainingJob
from mltune_cli.paths import working_folder
from mltune_cli.recipe.layers import LoadedRecipe
from mltune_cli.recipe.schema import Recipe
from mltune_cli.rendering.github import show_in_actions
from mltune_cli.rendering.junit import write_junit
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
from mltune_cli.reproduction.golden import GoldenEntry, record_golden
from mltune_cli.reproduction.golden_comparison import held_against
from mltune_cli.reproduction.golden_source import entry_of_command, entry_of_run
from mltune_cli.reproduction.output_folder import REPORT_JUNIT, output_folder, publish
from mltune_cli.reproduction.recipe_laboratory import RecipeLaboratory
from mltune_cli.reproduction.repeated_commands import RepeatedCommands
from mltune_cli.reproduction.repeated_runs import RepeatedRuns
from mltune_cli.reproduction.report import ReproductionReport
from mltune_cli.reproduction.report_secrets import report_without


class _Check(Protocol):
    """A training that can be run several times."""

    def run(self, run_count: int) -> ReproductionReport:
        """Run it and compare; explain where the runs part.

        Raises:
            UsageError: something that was asked for cannot be had.
        """

    def entry(self) -> GoldenEntry:
        """Return what the first run gave.

        Raises:
            NoVerdictError: it is not whole.
        """


def repro_check(loaded: LoadedRecipe, shape: ProcessShape, reference: Reference) -> ExitCode:
    """Run a recipe several times in fresh processes and compare every step.

    Args:
        loaded: the checked recipe.
        shape: how many processes compute each run.
        reference: the flags, and what the result is held against.

    Raises:
        UsageError: recipe, data, model, variation or output folder cannot be used.
    """
    _require_claim(loaded.recipe, shape.most_processes, "--nproc-per-node")
    check = _RecipeCheck(reference.options, new_job(loaded, shape=shape))
    return _conclude(check, reference, loaded.origins)


def repro_check_command(command: list[str], reference: Reference, *, in_parallel: bool) -> ExitCode:
    """Run somebody else's training command several times and compare every optimizer step.

    Args:
        command: program and arguments; `{run}` stands for the run's own folder.
        reference: the flags, and what the result is held against.
        in_parallel: run all at once.

    Raises:
        UsageError: the command, a variation or the output folder cannot be used.
    """
    return _conclude(_CommandCheck(reference.options, command, in_parallel), reference, {})


def list_conditions() -> ExitCode:
    """Print the conditions that `--vary` takes."""
    print_conditions(listed_conditions())
    return ExitCode.OK


def _conclude(check: _Check, reference: Reference, origins: Mapping[str, str]) -> ExitCode:
    """Run a check to its verdict, and tell everybody of it."""
    options = reference.options
    output = _absolute(options.output)
    with output_folder(output):
        report = _held(check.run(options.run_count), check, reference)
        if options.run_count == 1 and report.golden and report.golden.verdict != "reproduced":
            # Would two runs be equal at all? Before that is known, the code is not blamed, and
            # where the golden has nothing to say one run alone would decide nothing.
            for folder in output.glob("run-*"):
                shutil.rmtree(folder)
            report = _held(check.run(2), check, reference)
        if options.record is not None and report.verdict == "reproducible":
            record_golden(options.record, check.entry())
            report = report.model_copy(update={"recorded": str(options.record)})
        publish(output, report)
        write_junit(output / REPORT_JUNIT, report)
    (print_report_json if options.as_json else print_report)(report)
    show_in_actions(report, origins, os.environ)
    if options.junit is not None:
        try:
            write_junit(options.junit, report)
        except OSError as error:
            problem = f"--junit {options.junit}: cannot be written: {error.strerror}"
            raise NoVerdictError(problem) from None
    return report.exit_code


def _held(report: ReproductionReport, check: _Check, reference: Reference) -> ReproductionReport:
    """Hold runs against the golden, where there is one and they came to an end."""
    against = reference.options.against
    if against is None or report.verdict == "no_verdict":
        return report
    return held_against(
        report,
        reference.entries,
        check.entry() if report.verdict == "reproducible" else None,
        source=against,
        record_command=reference.record_command,
        allow_new_environment=reference.options.allow_new_environment,
    )


@dataclass
class _Checking:
    """What both kinds of check need.

    Attributes:
        started: when it began, from which the time-out counts.
    """

    options: CheckOptions
    started: float = field(default_factory=time.monotonic, kw_only=True)

    @property
    def output(self) -> Path:
        return _absolute(self.options.output)

    @functools.cached_property
    def conditions(self) -> list[Condition]:
        return parse_conditions(self.options.variations)

    @property
    def deadline(self) -> float | None:
        limit = self.options.timeout_seconds
        return None if limit is None else self.started + limit


@dataclass
class _RecipeCheck(_Checking):
    job: TrainingJob

    def run(self, run_count: int) -> ReproductionReport:
        view = ReproductionView(run_count)
        runs = RepeatedRuns(
            job=self.job,
            folder=self.output,
            run_count=run_count,
            slots=_slots(self.job, self.conditions),
            conditions=self.conditions,
            inherited=os.environ,
            timeout_seconds=self.options.timeout_seconds,
            on_event=view.show,
            on_output=view.show_output,
            started=self.started,
        )
        view.start()
        try:
            report = runs.check()
            if self.options.explain:
                laboratory = RecipeLaboratory(
                    self.output, os.environ, self.conditions, self.deadline, self.job
                )
                report = explained(report, laboratory, view.show_progress)
        finally:
            view.stop()
        return report

    def entry(self) -> GoldenEntry:
        return entry_of_run(self.output / "run-1")


@dataclass
class _CommandCheck(_Checking):
    command: list[str]
    in_parallel: bool

    def run(self, run_count: int) -> ReproductionReport:
        view = ReproductionView(run_count)
        secrets = secrets_in([*self.command, *self.options.variations])
        runs = RepeatedCommands(
            command=self.command,
            conditions=self.conditions,
            folder=self.output,
            run_count=run_count,
            in_parallel=self.in_parallel,
            inherited=os.environ,
            timeout_seconds=self.options.timeout_seconds,
            on_output=lambda run, line: view.show_output(run, text_without(secrets, line)),
            started=self.started,
        )
        report = runs.check()
        laboratory = CommandLaboratory(
            self.output, os.environ, self.conditions, self.deadline, self.command
        )
        if self.options.explain:
            report = explained(report, laboratory, view.show_progress)
        return report_without(secrets, with_seed_note(report, laboratory.records(1, "main")))

    def entry(self) -> GoldenEntry:
        return entry_of_command(self.output / "run-1", self.command, __version__, current_commit())


def _absolute(folder: Path) -> Path:
    # Not resolved: workers and commands see the path that was given, links and all.
    return Path(os.path.abspath(working_folder() / folder))  # noqa: PTH100


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
