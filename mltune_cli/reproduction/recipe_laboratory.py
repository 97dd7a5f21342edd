"""Runs a recipe again: with a trace of one step, or under a condition that both runs have."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mltune_cli.errors import MltuneError, NoVerdictError
from mltune_cli.launching.events import Witnessed
from mltune_cli.launching.held_signals import held_signals
from mltune_cli.launching.job import TraceOrder, TrainingJob
from mltune_cli.launching.worker_process import WorkerProcess
from mltune_cli.reproduction.comparison import StreamComparison
from mltune_cli.reproduction.conditions.draft import Condition
from mltune_cli.reproduction.conditions.parsing import parse_condition
from mltune_cli.reproduction.conditions.prepared import prepared_job
from mltune_cli.reproduction.laboratory import CheckedRuns
from mltune_cli.reproduction.localising import TracedPair
from mltune_cli.reproduction.report import FirstDifference
from mltune_cli.reproduction.trace_comparison import TraceFiles
from mltune_cli.run_folder import CHECKPOINTS
from mltune_cli.witness.record import WitnessRecord
from mltune_cli.witness.trace_record import TraceRequest

_POLL_SECONDS = 0.05
# A trace is whole shortly before or after the events of its step.
_TRACE_SECONDS = 30


@dataclass
class RecipeLaboratory(CheckedRuns):
    """See `explaining.Laboratory`.

    Attributes:
        job: of the first run.
    """

    job: TrainingJob

    def records(self, run: int, process: str) -> list[WitnessRecord]:  # noqa: ARG002 - the protocol
        """Return nothing: but for traced steps, our own records hold digests alone."""
        return []

    def traced(self, run: int, request: TraceRequest, process: str) -> TraceFiles:
        """See `explaining.Laboratory`."""
        return self._traced(run, request, process)[0]

    def traced_pair(self, runs: tuple[int, int], request: TraceRequest, process: str) -> TracedPair:
        """See `explaining.Laboratory`."""
        first, second = (self._traced(run, request, process) for run in runs)
        records = (first[1], second[1])
        earlier, parted = (_compared(records, last) for last in (request.step - 1, request.step))
        return TracedPair((first[0], second[0]), earlier, parted, records)

    def try_pair(self, conditions: Sequence[str], until: FirstDifference) -> FirstDifference | None:
        """See `explaining.Laboratory`."""
        last_step = until.step
        made = [parse_condition(text, self.inherited) for text in conditions]
        runs = []
        for _ in range(2):
            folder = self.explanation.new_experiment()
            records = list(self._records_until(folder, made, last_step))
            if not records or records[-1].step < last_step:
                raise NoVerdictError("a run ended before the step in question")
            runs.append(records)
        return _compared(runs, last_step)

    def _traced(
        self, run: int, request: TraceRequest, process: str
    ) -> tuple[TraceFiles, list[WitnessRecord]]:
        folder = self.explanation.new_trace(run)
        name = "rank-0" if process == "main" and not self.job.processes.is_single else process
        trace = TraceFiles(folder, name)
        order = TraceOrder(
            folder=str(folder), step=request.step, executions=request.executions,
            keep_from=request.keep_from, keep_bytes=request.keep_bytes,
        )  # fmt: skip
        conditions = self.variation if run > 1 else ()
        start = _common_checkpoint(self.folder, run, request.step)
        records = list(self._records_until(
            folder, conditions, request.step, number=run, order=order, start=start, trace=trace,
        ))  # fmt: skip
        if not trace.is_whole():
            raise NoVerdictError("the run ended before the end of the step")
        return trace, records

    def _records_until(
        self,
        folder: Path,
        conditions: Sequence[Condition],
        last_step: int,
        *,
        number: int | None = None,
        order: TraceOrder | None = None,
        start: Path | None = None,
        trace: TraceFiles | None = None,
    ) -> Iterator[WitnessRecord]:
        """Run the job up to a step, and yield its records.

        Raises:
            NoVerdictError: the run failed, or the time is up.
        """
        name = f"run-{number}" if number is not None else "run"
        recipe = self.job.recipe.with_values({"output_dir": str(folder / name)})
        job = self.job.model_copy(
            update={
                "recipe": recipe,
                "trace": order,
                "resume_from": str(start) if start is not None else None,
            }
        )
        ready = prepared_job(job, self.inherited, conditions, folder / "conditions")
        worker = None
        timer = None
        try:
            with held_signals():
                worker = WorkerProcess(
                    ready.job, lambda line: None, ready.inherited, settings=ready.settings,  # noqa: ARG005
                    cwd=ready.cwd, umask=ready.umask,
                )  # fmt: skip
            if self.deadline is not None:
                timer = threading.Timer(max(0.0, self.deadline - time.monotonic()), worker.stop)
                timer.daemon = True
                timer.start()
            for event in worker.events():
                if not isinstance(event, Witnessed):
                    continue
                record = WitnessRecord.from_fields(event.record)
                yield record
                if record.step >= last_step:
                    _wait(trace.is_whole if trace is not None else lambda: True)
                    return
        except MltuneError as error:
            raise NoVerdictError(error.message) from None
        finally:
            if timer is not None:
                timer.cancel()
            if worker is not None:
                worker.stop()


def _wait(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TRACE_SECONDS
    while not is_done() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _common_checkpoint(folder: Path, run: int, step: int) -> Path | None:
    """Return a run's newest checkpoint before a step of which every run has its own.

    All are resumed at the same step: what a run does when it starts is a part of what is traced.
    """
    runs = [path / CHECKPOINTS for path in folder.glob("run-*") if (path / CHECKPOINTS).is_dir()]
    steps = [{_step(mark.parent) for mark in run.glob("step-*/complete.json")} for run in runs]
    common = [one for one in set.intersection(*steps) if one < step] if steps else []
    own = folder / f"run-{run}" / CHECKPOINTS
    return own / f"step-{max(common):06d}" if common and own.is_dir() else None


def _step(checkpoint: Path) -> int:
    digits = checkpoint.name.removeprefix("step-")
    # What is being written has another name; no run has a step as late as that.
    return int(digits) if digits.isdecimal() else 1 << 62


def _compared(runs: Sequence[Sequence[WitnessRecord]], last_step: int) -> FirstDifference | None:
    """Return where two runs part up to a step; one that was resumed has no earlier records."""
    comparison = StreamComparison(len(runs))
    for number, records in enumerate(runs):
        for record in records:
            if record.step > last_step:
                break
            difference = comparison.add(number, record)
            if difference is not None:
                return difference
    return None
