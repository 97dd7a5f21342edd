"""From a report that says where runs part to one that says at which operation, and why."""

from collections.abc import Callable, Sequence
from typing import Protocol

from mltune_cli.reproduction.case import Case
from mltune_cli.reproduction.diagnosis import diagnose
from mltune_cli.reproduction.localising import Localising, TracedPair, localise
from mltune_cli.reproduction.observations import (
    differing_tensors,
    drawn_before_seed,
    trained_tensors,
)
from mltune_cli.reproduction.report import FirstDifference, ReproductionReport
from mltune_cli.reproduction.trace_comparison import TraceFiles
from mltune_cli.witness.record import WitnessRecord
from mltune_cli.witness.trace_record import TraceRequest

_LEFT_FILES = "run 1 left files"
_MOST_NAMES = 20


class Laboratory(Protocol):
    """Runs a check's runs again, up to the step in question."""

    def tidy(self) -> None:
        """Remove what the runs left, but for the traces."""

    @property
    def can_trace(self) -> bool:
        """Whether a step can be run again with a trace."""

    def traced(self, run: int, request: TraceRequest, process: str) -> TraceFiles:
        """Run one of the compared runs again, each under its own conditions, with a trace.

        Raises:
            NoVerdictError: it failed before the end of the step.
        """

    def records(self, run: int, process: str) -> Sequence[WitnessRecord]:
        """Return what a process of one of the compared runs has reported."""

    def traced_pair(self, runs: tuple[int, int], request: TraceRequest, process: str) -> TracedPair:
        """Run two of the compared runs again, with a trace.

        Raises:
            NoVerdictError: one failed before the end of the step.
        """

    def try_pair(self, conditions: Sequence[str], until: FirstDifference) -> FirstDifference | None:
        """Run two runs under the same conditions; return where they part up to where others did.

        Raises:
            NoVerdictError: one failed before the end of the step.
        """


def explained(
    report: ReproductionReport, laboratory: Laboratory, on_progress: Callable[[str], None]
) -> ReproductionReport:
    """Return a report with the operation and the cause of its difference.

    Args:
        report: what the comparison found.
        laboratory: runs steps again.
        on_progress: told what is being done.
    """
    if report.first_difference is None:
        return report
    try:
        return _explained(report, report.first_difference, laboratory, on_progress)
    finally:
        laboratory.tidy()


def _explained(
    report: ReproductionReport,
    difference: FirstDifference,
    laboratory: Laboratory,
    on_progress: Callable[[str], None],
) -> ReproductionReport:
    process = difference.process or "main"
    found = Localising()
    is_traceable = difference.stage not in ("missing", "order") and not difference.stage.startswith(
        "file "
    )
    if laboratory.can_trace and is_traceable:
        on_progress(f"runs part at step {difference.step}: tracing its operations")
        found = localise(
            difference,
            lambda request, name: laboratory.traced_pair(difference.runs, request, name),
            lambda request, name: laboratory.traced(difference.runs[0], request, name),
        )
    on_progress("looking for the cause")
    case = Case(
        difference=difference,
        localisation=found.found,
        parted_again=found.parted,
        agreed=found.agreed,
        records=(
            laboratory.records(difference.runs[0], process),
            laboratory.records(difference.runs[1], process),
        ),
        variation=report.variation,
        left_files=[note for note in report.notes if note.startswith(_LEFT_FILES)],
    )
    diagnosis = diagnose(case, laboratory.try_pair)
    return report.model_copy(
        update={
            "localisation": found.found,
            "tensors": differing_tensors(found.records, difference)[:_MOST_NAMES],
            "diagnosis": diagnosis,
            "notes": [*report.notes, *found.notes],
        }
    )


def with_seed_note(
    report: ReproductionReport, records: Sequence[WitnessRecord]
) -> ReproductionReport:
    """Return a report that says so where trained tensors were drawn before the seed was set.

    Runs may agree all the same: torch's generator starts from a seed of its own. But no seed that
    is set later reaches those tensors.
    """
    count = drawn_before_seed(records)
    if not count:
        return report
    note = (
        f"{count} of {trained_tensors(records)} trained tensors were initialised before the seed "
        "was set, so another seed does not change them; set the seed before the model or its "
        "adapter is made"
    )
    return report.model_copy(update={"notes": [*report.notes, note]})
