"""One recipe, run several times in fresh processes, compared while it runs."""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mltune_cli.errors import MltuneError, NoVerdictError, StoppedBySignalError, UsageError
from mltune_cli.launching.events import Event, Started, StepDone, Witnessed
from mltune_cli.launching.held_signals import held_signals
from mltune_cli.launching.job import TrainingJob
from mltune_cli.launching.worker_process import WorkerProcess
from mltune_cli.manifest import Manifest, read_manifest
from mltune_cli.recipe.layers import flatten
from mltune_cli.reproduction.comparison import (
    StreamComparison,
    compare_common_lines,
    compare_files,
)
from mltune_cli.reproduction.conditions.draft import Condition
from mltune_cli.reproduction.conditions.parsing import changes_environment
from mltune_cli.reproduction.conditions.prepared import (
    PreparedJob,
    prepared_job,
    require_others,
)
from mltune_cli.reproduction.report import (
    FirstDifference,
    ReproductionReport,
    RunOutcome,
    RunStatus,
    Verdict,
)
from mltune_cli.run_folder import ADAPTER, EVALUATION_LOG, MODEL, TRAINING_LOG, WITNESS_LOG
from mltune_cli.witness.record import WitnessRecord

# Logs with a line for each time that something is done, and the keys that say how often.
_CADENCES = {EVALUATION_LOG: "evaluate.every_steps", TRAINING_LOG: "log.every_steps"}


@dataclass
class _Run:
    """One of the compared runs, while it goes on.

    Attributes:
        was_killed: on purpose; it is started again, once.
    """

    number: int
    folder: Path
    prepared: PreparedJob
    was_killed: bool = False
    is_resumed: bool = False
    worker: WorkerProcess | None = None
    done: bool = False
    steps: int = 0
    last_loss: float | None = None
    error: MltuneError | None = None

    def outcome(self) -> RunOutcome:
        status: RunStatus = "finished" if self.done else "stopped"
        if self.error is not None:
            status = "failed"
        return RunOutcome(
            number=self.number, folder=str(self.folder), status=status, steps=self.steps,
            last_loss=self.last_loss, error=self.error.message if self.error else None,
        )  # fmt: skip


@dataclass
class RepeatedRuns:
    """Runs a job several times and compares the digests as they arrive.

    Attributes:
        job: the training job; its output folder is replaced by each run's own.
        folder: where `run-1`, `run-2`, ... are made.
        run_count: how many; one alone is compared with nothing.
        slots: environment variables of the runs that may go on side by side.
        inherited: the environment to start from.
        timeout_seconds: after which there is no verdict; None waits for ever.
        on_event: called with the run's number (from 1) and each event.
        on_output: called with the run's number and each line that a worker prints.
        conditions: of every run but the first.
        common: conditions of all runs.
        started: when the check began, from which the time-out counts.
    """

    job: TrainingJob
    folder: Path
    run_count: int
    slots: list[dict[str, str]]
    inherited: Mapping[str, str]
    timeout_seconds: float | None
    on_event: Callable[[int, Event], None]
    on_output: Callable[[int, str], None]
    conditions: Sequence[Condition] = ()
    common: Sequence[Condition] = ()
    started: float = field(default_factory=time.monotonic)
    _inbox: "queue.Queue[tuple[_Run, Event | MltuneError | None]]" = field(
        default_factory=queue.Queue
    )

    def check(self) -> ReproductionReport:
        """Run and compare.

        Raises:
            UsageError: recipe, data, model or a condition cannot be used.
        """
        runs = [self._run(number) for number in range(1, self.run_count + 1)]
        require_others(runs[-1].prepared.unchanged, self.conditions)
        comparison = StreamComparison(self.run_count)
        reason = None
        try:
            difference = self._run_all(runs, comparison)
            if difference is None:
                difference = comparison.missing_step() or self._compare_finished(runs)
        except UsageError:
            raise
        except NoVerdictError as error:
            difference, reason = None, error.message
        finally:
            for run in runs:
                if run.worker is not None:
                    run.worker.stop()
        manifests = [_manifest_or_none(run.folder) for run in runs]
        manifest = manifests[0]
        classes = {m.environment_class for m in manifests if m}
        # Where they differ by the conditions, the difference is what was asked for.
        if difference and len(classes) > 1 and not changes_environment(self.conditions):
            difference, reason = (
                None,
                (
                    "the runs part, and they ran in different environments (see their manifests), "
                    "so neither recipe nor code can be blamed"
                ),
            )
        verdict: Verdict = "reproducible" if difference is None else "different"
        if reason is not None:
            verdict = "no_verdict"
        return ReproductionReport(
            verdict=verdict,
            recipe_name=self.job.recipe_name,
            recipe_digest=manifest.recipe_digest if manifest else None,
            environment_class=manifest.environment_class if manifest else None,
            compared_steps=comparison.compared_steps,
            first_difference=difference,
            variation=[str(condition) for condition in self.conditions],
            reason=reason,
            runs=[run.outcome() for run in runs],
            seconds=round(time.monotonic() - self.started, 3),
        )

    def _run(self, number: int) -> _Run:
        folder = self.folder / f"run-{number}"
        recipe = self.job.recipe.with_values({"output_dir": str(folder)})
        job = self.job.model_copy(update={"recipe": recipe})
        conditions = [*self.common, *(self.conditions if number > 1 else ())]
        fresh = self.folder / f"run-{number}-conditions"
        return _Run(number, folder, prepared_job(job, self.inherited, conditions, fresh))

    def _run_all(self, runs: list[_Run], comparison: StreamComparison) -> FirstDifference | None:
        """Keep every slot busy until all runs are done; return at the first difference."""
        waiting = list(runs)
        free = list(self.slots)
        held: dict[int, dict[str, str]] = {}
        while waiting or held:
            while waiting and free:
                run = waiting.pop(0)
                held[run.number] = free.pop(0)
                self._start(run, held[run.number])
            run, message = self._next_message()
            if run.was_killed and not run.is_resumed and not isinstance(message, Event):
                self._resume(run, message, held[run.number])
                continue
            if message is None:
                _require_killed(run)
                run.done = run.error is None
                free.append(held.pop(run.number))
                continue
            if isinstance(message, MltuneError):
                run.error = message
                if isinstance(message, UsageError):
                    raise message
                raise NoVerdictError(f"run {run.number} failed: {message.message}")
            difference = self._take_event(run, message, comparison)
            if difference is not None:
                return difference
        return None

    def _next_message(self) -> tuple[_Run, Event | MltuneError | None]:
        remaining = None
        if self.timeout_seconds is not None:
            remaining = max(0.0, self.started + self.timeout_seconds - time.monotonic())
        try:
            return self._inbox.get(timeout=remaining)
        except queue.Empty:
            raise NoVerdictError(
                f"the runs were not done after --timeout {self.timeout_seconds:g} seconds"
            ) from None

    def _take_event(
        self, run: _Run, event: Event, comparison: StreamComparison
    ) -> FirstDifference | None:
        self.on_event(run.number, event)
        if isinstance(event, Witnessed):
            record = WitnessRecord.from_fields(event.record)
            return comparison.add(run.number - 1, record)
        kill_at = run.prepared.kill_at
        if isinstance(event, Started) and kill_at is not None and kill_at > event.total_steps:
            raise UsageError(
                f"--vary kill-and-resume={kill_at}: the run has {event.total_steps} steps; "
                "name an earlier one"
            )
        if isinstance(event, StepDone):
            run.steps, run.last_loss = event.step, event.loss
            if event.step == kill_at and not run.was_killed and run.worker is not None:
                run.was_killed = True
                run.worker.stop()
        return None

    def _resume(self, run: _Run, message: MltuneError | None, slot: Mapping[str, str]) -> None:
        """Start a run that was killed once more, in the same folder.

        Raises:
            NoVerdictError: it had come to its end by itself.
        """
        if message is None:
            raise NoVerdictError(
                f"run {run.number} was done before it could be killed; name an earlier step"
            )
        run.is_resumed = True
        self._start(run, slot)

    def _start(self, run: _Run, slot: Mapping[str, str]) -> None:
        prepared = run.prepared
        job = prepared.job.model_copy(update={"resume": run.is_resumed})
        with held_signals():
            run.worker = WorkerProcess(
                job,
                lambda line: self.on_output(run.number, line),
                {**prepared.inherited, **slot},
                settings=prepared.settings,
                cwd=prepared.cwd,
                umask=prepared.umask,
            )
        threading.Thread(target=self._listen, args=(run, run.worker), daemon=True).start()

    def _listen(self, run: _Run, worker: WorkerProcess) -> None:
        try:
            for event in worker.events():
                self._inbox.put((run, event))
        except MltuneError as error:
            self._inbox.put((run, error))
        except (StoppedBySignalError, Exception) as error:  # noqa: BLE001
            # Whatever else ends the listening must not make the run look finished.
            detail = f"{type(error).__name__}: {error}"
            self._inbox.put((run, NoVerdictError(f"listening to it failed: {detail}")))
        else:
            self._inbox.put((run, None))

    def _compare_finished(self, runs: list[_Run]) -> FirstDifference | None:
        last, folders = runs[0].steps, [run.folder for run in runs]
        recipes = [run.prepared.job.recipe for run in runs]
        # A log that is written at other steps is compared at the steps that all runs have.
        partial = [
            name for name, key in _CADENCES.items()
            if len({flatten(recipe.model_dump())[key] for recipe in recipes}) > 1
        ]  # fmt: skip
        names = (TRAINING_LOG, WITNESS_LOG, EVALUATION_LOG, ADAPTER, MODEL)
        whole = {name: last for name in names if name not in partial}
        # It names the recipe by digest, and a recipe with another key is another one.
        is_one_recipe = len({recipe.bits_digest() for recipe in recipes}) == 1
        left_out = () if is_one_recipe else ("metadata.json",)
        return compare_files(folders, whole, left_out) or compare_common_lines(folders, partial)


def _require_killed(run: _Run) -> None:
    kill_at = run.prepared.kill_at
    if kill_at is not None and not run.was_killed and run.error is None:
        raise NoVerdictError(
            f"run {run.number} ended before step {kill_at}, after which it was to be killed"
        )


def _manifest_or_none(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except UsageError:
        return None
