"""One command, run several times, its training compared step by step."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mltune_cli.command_secrets import command_without_secrets
from mltune_cli.errors import NoVerdictError, UsageError
from mltune_cli.launching.command_process import CommandProcess
from mltune_cli.launching.held_signals import held_signals
from mltune_cli.reproduction.conditions.draft import Condition
from mltune_cli.reproduction.conditions.prepared import (
    PreparedCommand,
    prepared_command,
    require_others,
)
from mltune_cli.reproduction.left_files import FolderListing, list_folder, note_of_left_files
from mltune_cli.reproduction.report import (
    FirstDifference,
    ReproductionReport,
    RunOutcome,
    RunStatus,
    Verdict,
)
from mltune_cli.reproduction.witness_files import OrderedComparison, WitnessFiles, place_of

# Stands in a command for the run's own folder.
RUN_FOLDER = "{run}"
_POLL_SECONDS = 0.1
# Processes of a run report a step within this time of each other.
_OTHERS_SECONDS = 2.0
# Processes that do not wait for each other are killed after this time, wherever they are. Who is
# there first waits longer (see `witness.conditions`).
_LATE_SECONDS = 60.0


@dataclass
class _Run:
    """One of the compared runs, while it goes on.

    Attributes:
        first: the run with which it is compared; None for that one itself.
        steps: the last step that each process of it has shown.
        due_since: when the first process came to the step after which all are to be killed.
    """

    number: int
    folder: Path
    files: WitnessFiles
    prepared: PreparedCommand
    first: "_Run | None" = None
    steps: dict[str, int] = field(default_factory=dict)
    due_since: float | None = None
    process: CommandProcess | None = None
    status: RunStatus = "stopped"
    error: str | None = None

    @property
    def reached(self) -> int:
        """The last step that a process of it has shown."""
        return max(self.steps.values(), default=0)

    def is_to_be_killed(self) -> bool:
        """Tell whether as many processes as in the first run are at the step to be killed at.

        Those that are there wait, so that the run goes on until then.
        """
        step = self.prepared.kill_at
        if step is None or self.reached < step:
            return False
        if self.due_since is None:
            self.due_since = time.monotonic()
        expected = 1 if self.first is None else self.first._processes_at(step)
        is_late = time.monotonic() - self.due_since > _LATE_SECONDS
        return is_late or self._processes_at(step) >= expected

    def _processes_at(self, step: int) -> int:
        return sum(reached >= step for reached in self.steps.values())


@dataclass
class RepeatedCommands:
    """Runs a command several times and compares the witnesses that its processes write.

    Attributes:
        command: program and arguments; `{run}` in them stands for the run's own folder.
        folder: where `run-1`, `run-2`, ... are made.
        run_count: how many; one alone is compared with nothing.
        in_parallel: all at once; else one after the other.
        inherited: the environment.
        timeout_seconds: after which there is no verdict; None waits for ever.
        on_output: called with the run's number and each line that it prints.
        conditions: of every run but the first.
        common: conditions of all runs.
        started: when the check began, from which the time-out counts.
    """

    command: Sequence[str]
    folder: Path
    run_count: int
    in_parallel: bool
    inherited: Mapping[str, str]
    timeout_seconds: float | None
    on_output: Callable[[int, str], None]
    conditions: Sequence[Condition] = ()
    common: Sequence[Condition] = ()
    started: float = field(default_factory=time.monotonic)

    def check(self) -> ReproductionReport:
        """Run and compare.

        Raises:
            UsageError: the command cannot be run, or not with the conditions.
        """
        runs = [self._run(number) for number in range(1, self.run_count + 1)]
        for run in runs[1:]:
            run.first = runs[0]
        require_others(runs[-1].prepared.unchanged, self.conditions)
        before = None if self.in_parallel else self._list_working_directory()
        note = None
        is_resumed = any(run.prepared.kill_at is not None for run in runs)
        if self.in_parallel and is_resumed:
            raise UsageError(
                "--parallel: kill-and-resume compares with the whole first run; drop one of both"
            )
        comparison = OrderedComparison(self.run_count, is_resumed=is_resumed)
        difference, reason = None, None
        try:
            for group in [runs] if self.in_parallel else [[run] for run in runs]:
                difference = self._run_group(group, comparison)
                if difference is not None:
                    break
                if before is not None and group[0].number == 1 and self.run_count > 1:
                    note = note_of_left_files(before, self._list_working_directory())
            else:
                difference = comparison.missing()
        except NoVerdictError as error:
            reason = error.message
        finally:
            for run in runs:
                if run.process is not None:
                    run.process.stop()
        verdict: Verdict = "reproducible" if difference is None else "different"
        if reason is not None:
            verdict = "no_verdict"
        return ReproductionReport(
            verdict=verdict,
            recipe_name=command_without_secrets(self.command),
            recipe_digest=None,
            environment_class=None,
            compared_steps=comparison.compared_steps,
            first_difference=difference,
            variation=[str(condition) for condition in self.conditions],
            notes=[note] if note else [],
            reason=reason,
            runs=[
                RunOutcome(
                    number=run.number, folder=str(run.folder), status=run.status,
                    steps=comparison.steps(run.number - 1), last_loss=None, error=run.error,
                )
                for run in runs
            ],
            seconds=round(time.monotonic() - self.started, 3),
        )  # fmt: skip

    def _run(self, number: int) -> _Run:
        folder = self.folder / f"run-{number}"
        conditions = [*self.common, *(self.conditions if number > 1 else ())]
        prepared = prepared_command(
            self.command, self.inherited, conditions, self.folder / f"run-{number}-conditions"
        )
        return _Run(number, folder, WitnessFiles(folder / "witness"), prepared)

    def _list_working_directory(self) -> FolderListing:
        return list_folder(Path.cwd(), leave_out=self.folder)

    def _start(self, run: _Run) -> CommandProcess:
        files = run.folder / "files"
        files.mkdir(parents=True, exist_ok=True)
        prepared = run.prepared
        return CommandProcess(
            [part.replace(RUN_FOLDER, str(files)) for part in prepared.command],
            run.folder / "witness",
            prepared.environment,
            lambda line: self.on_output(run.number, line),
            cwd=prepared.cwd,
            umask=prepared.umask,
        )

    def _run_group(
        self, group: list[_Run], comparison: OrderedComparison
    ) -> FirstDifference | None:
        """Run some runs side by side to their ends; return at the first difference.

        Raises:
            NoVerdictError: a run failed, took too long, or never took an optimizer step.
        """
        going_on = list(group)
        for run in group:
            with held_signals():
                run.process = self._start(run)
        while going_on:
            self._require_time(going_on)
            for run in list(going_on):
                # Asked before the files are read: what is read then is all there is.
                has_ended = run.process is not None and not run.process.is_running
                difference = self._compare_new(run, comparison)
                if difference is not None:
                    return difference
                if run.is_to_be_killed():
                    difference = self._kill_and_restart(run, comparison)
                    if difference is not None:
                        return difference
                elif has_ended:
                    self._finish(run, comparison)
                    going_on.remove(run)
                    difference = comparison.end(run.number - 1)
                    if difference is not None:
                        return difference
            time.sleep(_POLL_SECONDS)
        return None

    def _compare_new(self, run: _Run, comparison: OrderedComparison) -> FirstDifference | None:
        found = self._differences(run, comparison)
        if not found or not comparison.has_several_processes:
            return found[0] if found else None
        # What parts in one process reaches the others within the step, by a reduction: the process
        # in which it began is the one whose earliest stage differs.
        deadline = time.monotonic() + _OTHERS_SECONDS
        while time.monotonic() < deadline and run.process is not None and run.process.is_running:
            time.sleep(_POLL_SECONDS)
            found += self._differences(run, comparison)
        return min(found + self._differences(run, comparison), key=place_of)

    def _differences(self, run: _Run, comparison: OrderedComparison) -> list[FirstDifference]:
        found = []
        for stream, record in run.files.new_records():
            run.steps[stream] = max(run.steps.get(stream, 0), record.step)
            difference = comparison.add(run.number - 1, stream, record)
            if difference is not None:
                found.append(difference)
        return found

    def _kill_and_restart(self, run: _Run, comparison: OrderedComparison) -> FirstDifference | None:
        """End a run and all it started, at once, and start it again in the same folder."""
        if run.process is not None:
            run.process.stop()
        difference = self._compare_new(run, comparison) or comparison.end(run.number - 1)
        if difference is not None:
            return difference
        comparison.begin_again(run.number - 1)
        run.prepared = run.prepared.restarted()
        with held_signals():
            run.process = self._start(run)
        return None

    def _require_time(self, going_on: Sequence[_Run]) -> None:
        limit = self.timeout_seconds
        if limit is None or time.monotonic() - self.started <= limit:
            return
        said = "; ".join(
            f"run {run.number} was in step {run.reached + 1}{_last_lines(run)}" for run in going_on
        )
        raise NoVerdictError(f"the runs were not done after --timeout {limit:g} seconds: {said}")

    def _finish(self, run: _Run, comparison: OrderedComparison) -> None:
        failure = run.process.failure() if run.process is not None else None
        if failure is None and (trouble := run.files.trouble()) is not None:
            failure = f"its training could not be watched: {trouble}"
        if failure is None and comparison.steps(run.number - 1) == 0:
            failure = _NOTHING_SEEN
        kill_at = run.prepared.kill_at
        if failure is None and kill_at is not None:
            failure = f"it ended before step {kill_at}, after which it was to be killed"
        if failure is not None:
            run.status, run.error = "failed", failure
            raise NoVerdictError(f"run {run.number} failed: {failure}")
        run.status = "finished"


def _last_lines(run: _Run) -> str:
    return "" if run.process is None else run.process.last_lines()


_NOTHING_SEEN = (
    "no optimizer of torch took a step that could be seen; is it a Python training script, started "
    "without -I, -E or -S, that keeps PYTHONPATH, and whose optimizers come from torch.optim?"
)
