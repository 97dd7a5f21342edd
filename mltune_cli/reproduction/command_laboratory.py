"""Runs a command again: with a trace of one step, or under a condition that both runs have."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mltune_cli.errors import NoVerdictError
from mltune_cli.launching.command_process import CommandProcess
from mltune_cli.launching.held_signals import held_signals
from mltune_cli.reproduction.child_streams import certain, is_child, paired
from mltune_cli.reproduction.conditions.draft import Condition
from mltune_cli.reproduction.conditions.parsing import parse_condition
from mltune_cli.reproduction.conditions.prepared import prepared_command
from mltune_cli.reproduction.laboratory import CheckedRuns
from mltune_cli.reproduction.localising import TracedPair
from mltune_cli.reproduction.report import FirstDifference
from mltune_cli.reproduction.trace_comparison import TraceFiles
from mltune_cli.reproduction.witness_files import OrderedComparison, WitnessFiles
from mltune_cli.witness.record import WitnessRecord
from mltune_cli.witness.trace_record import TraceRequest

# Stands in a command for the run's own folder.
_RUN_FOLDER = "{run}"
_POLL_SECONDS = 0.05


@dataclass
class CommandLaboratory(CheckedRuns):
    """See `explaining.Laboratory`.

    Attributes:
        command: program and arguments.
    """

    command: Sequence[str]

    def records(self, run: int, process: str) -> list[WitnessRecord]:
        """See `explaining.Laboratory`."""
        return self._read(self.folder / f"run-{run}" / "witness", process)

    def traced(self, run: int, request: TraceRequest, process: str) -> TraceFiles:
        """See `explaining.Laboratory`."""
        conditions = self.variation if run > 1 else ()
        folder = self.explanation.new_trace(run)
        trace = TraceFiles(folder / "witness", process)

        def is_whole() -> bool:
            nonlocal trace
            stem = self._stem(process, trace.folder)
            trace = TraceFiles(trace.folder, process, stem)
            if stem is None or not trace.is_whole():
                return False
            # The record of the step comes after its trace.
            return any(one.step >= request.step for one in self._read(trace.folder, process))

        self._run_until(folder, conditions, {"MLTUNE_TRACE": request.to_json()}, is_whole)
        return trace

    def traced_pair(self, runs: tuple[int, int], request: TraceRequest, process: str) -> TracedPair:
        """See `explaining.Laboratory`."""
        first, second = (self.traced(run, request, process) for run in runs)
        mine, theirs = (self._read(trace.folder, process) for trace in (first, second))
        earlier, parted = (
            _compared([mine, theirs], process, last) for last in (request.step - 1, request.step)
        )
        return TracedPair((first, second), earlier, parted, (mine, theirs))

    def try_pair(self, conditions: Sequence[str], until: FirstDifference) -> FirstDifference | None:
        """See `explaining.Laboratory`."""
        last_step, is_whole = until.step, until.stage == "missing"
        made = [parse_condition(text, self.inherited) for text in conditions]
        first = self._all(self.folder / "run-1" / "witness")
        expected = Counter(stream for stream, one in first if one.step_within <= last_step)
        folders = []
        for _ in range(2):
            folder = self.explanation.new_experiment()
            seen = _Seen(folder / "witness", expected, last_step)
            # Whether a step comes or not is known at the end alone.
            self._run_until(folder, made, {}, None if is_whole else seen.has_come)
            folders.append(folder / "witness")
        streams = sorted({stream for folder in folders for stream, _ in self._all(folder)})
        for stream in streams:
            runs = [self._read(folder, stream) for folder in folders]
            difference = _compared(runs, stream, last_step, are_whole=is_whole)
            if difference is not None:
                return difference
        return None

    @property
    def _streams(self) -> set[str]:
        """The processes of the first run, from which all others have their names."""
        return _streams(self.folder / "run-1" / "witness")

    def _stem(self, process: str, folder: Path) -> str | None:
        """Return the name of a process's files in a run that goes on; None: not certain yet."""
        if not is_child(process):
            return process
        names = certain(self._streams, _streams(folder))
        return next((own for own, name in names.items() if name == process), None)

    def _all(self, folder: Path) -> list[tuple[str, WitnessRecord]]:
        found = list(WitnessFiles(folder).new_records())
        names = paired(self._streams, {stream for stream, _ in found})
        return [(names.get(stream, stream), record) for stream, record in found]

    def _read(self, folder: Path, process: str) -> list[WitnessRecord]:
        return [record for stream, record in self._all(folder) if stream == process]

    def _run_until(
        self,
        folder: Path,
        conditions: Sequence[Condition],
        variables: Mapping[str, str],
        is_done: Callable[[], bool] | None,
    ) -> None:
        """Run the command until what was looked for is there; None waits for its end.

        Raises:
            NoVerdictError: it failed, or ended before, or the time is up.
        """
        files = folder / "files"
        files.mkdir()
        command = [part.replace(_RUN_FOLDER, str(files)) for part in self.command]
        ready = prepared_command(command, self.inherited, conditions, folder / "conditions")
        process = None
        try:
            with held_signals():
                process = CommandProcess(
                    ready.command,
                    folder / "witness",
                    {**ready.environment, **variables},
                    lambda line: None,  # noqa: ARG005 - it was shown when the run was compared
                    cwd=ready.cwd,
                    umask=ready.umask,
                )
            while process.is_running and (is_done is None or not is_done()):
                if self.deadline is not None and time.monotonic() > self.deadline:
                    raise NoVerdictError("the time that --timeout gives is up")
                time.sleep(_POLL_SECONDS)
            if is_done is not None and not is_done():
                raise NoVerdictError(process.failure() or "it ended before the end of the step")
            if is_done is None and (failure := process.failure()) is not None:
                raise NoVerdictError(failure)
        finally:
            if process is not None:
                process.stop()


class _Seen:
    """Tells when the processes of a run have reported all that is to be compared.

    Processes do not report at the same moment, nor several optimizers: who stops a run at its first
    report finds nothing to compare, and takes that for agreement.

    Args:
        folder: the witness files of the run.
        expected: each process's number of records up to `last_step`, as a run had that was whole.
        last_step: up to which runs are compared.
    """

    def __init__(self, folder: Path, expected: Mapping[str, int], last_step: int) -> None:
        self._files = WitnessFiles(folder)
        self._expected = expected
        self._last_step = last_step
        self._counts: Counter[str] = Counter()
        self._has_reached = False

    def has_come(self) -> bool:
        for stream, record in self._files.new_records():
            if record.step_within <= self._last_step:
                self._counts[stream] += 1
            self._has_reached |= record.step >= self._last_step
        if not self._expected:
            return self._has_reached
        # While a child is still to come, some expected one has no like.
        names = paired(self._expected, self._counts)
        counts = {names.get(stream, stream): count for stream, count in self._counts.items()}
        return all(counts.get(stream, 0) >= count for stream, count in self._expected.items())


def _streams(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.jsonl")}


def _compared(
    runs: Sequence[Sequence[WitnessRecord]],
    process: str,
    last_step: int,
    *,
    are_whole: bool = False,
) -> FirstDifference | None:
    """Return where two runs part up to a step; runs that are whole must have the same steps."""
    comparison = OrderedComparison(len(runs))
    for number, records in enumerate(runs):
        for record in records:
            if record.step_within > last_step and not are_whole:
                break
            difference = comparison.add(number, process, record)
            if difference is not None:
                return difference
        difference = comparison.end(number)
        if difference is not None:
            return difference
    return comparison.missing() if are_whole else None
