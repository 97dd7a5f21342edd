"""Finds the operation at which two runs part, by running their first differing step again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mltune_cli.errors import NoVerdictError
from mltune_cli.reproduction.report import FirstDifference, Localisation
from mltune_cli.reproduction.trace_comparison import (
    TraceFiles,
    compare_traces,
    convicted,
    uninitialised_read,
)
from mltune_cli.witness.record import WitnessRecord
from mltune_cli.witness.trace_record import TraceRequest

# Where the race moves, the step at which runs part moves as well.
_ATTEMPTS = 5
_EXECUTIONS = 4


@dataclass(frozen=True)
class TracedPair:
    """Two runs under the trace.

    Attributes:
        traces: of the process in question.
        earlier: where the two runs parted before the traced step; None where they did not.
        parted: where they parted up to its end.
        records: of the same process, with the digests of single tensors where it writes them.
    """

    traces: tuple[TraceFiles, TraceFiles]
    earlier: FirstDifference | None
    parted: FirstDifference | None
    records: tuple[Sequence[WitnessRecord], Sequence[WitnessRecord]] = ((), ())


# Runs the two compared runs again, each under its own conditions, up to the end of the traced step.
RunPair = Callable[[TraceRequest, str], TracedPair]
# Runs one of them.
RunOne = Callable[[TraceRequest, str], TraceFiles]


@dataclass
class Localising:
    """What looking for the operation came to.

    Attributes:
        found: None where nothing was found.
        notes: why it was not found, or what else was seen.
        parted: how many pairs of runs under the trace parted.
        agreed: how many did not.
        records: of the last pair.
    """

    found: Localisation | None = None
    notes: list[str] = field(default_factory=list)
    parted: int = 0
    agreed: int = 0
    records: tuple[Sequence[WitnessRecord], Sequence[WitnessRecord]] = ((), ())


def localise(difference: FirstDifference, run_pair: RunPair, run_one: RunOne) -> Localising:
    """Find the operation at which two runs part.

    Args:
        difference: the first one, from the digests of the steps.
        run_pair: runs both again under the trace.
        run_one: runs the first one again under the trace.
    """
    process = difference.process or "main"
    result = Localising()
    step = difference.step
    try:
        for _ in range(_ATTEMPTS):
            pair = run_pair(TraceRequest(step), process)
            result.records = pair.records
            if pair.earlier is None:
                if pair.parted is None:  # whatever their traces say, nothing comes of it
                    result.agreed += 1  # the next pair may part
                    continue
                result.parted += 1
                result.found = _of_pair(result, pair, step, process, run_pair, run_one)
                break
            result.parted += 1
            result.notes.append(
                f"run again, they parted at step {pair.earlier.step} already: what parts them "
                "moves from run to run"
            )
            step = pair.earlier.step
        if _may_be_made_before(difference, step, result.found):
            result.found = _made_before(difference, process, run_pair) or result.found
        if result.found is None and step > 0:
            _convict(result, step, process, run_one)
    except NoVerdictError as error:
        result.notes.append(f"the step could not be traced: {error.message}")
    return result


def _may_be_made_before(difference: FirstDifference, step: int, found: Localisation | None) -> bool:
    """Tell whether what differs may have been there when the trace began.

    A later optimizer's model, which nobody digests before its own first step.
    """
    is_read = step == 1 and found is not None and difference.stage != "batch"
    return step > 0 and (difference.is_start or is_read) and _is_older(found)


def _is_older(found: Localisation | None) -> bool:
    return found is None or (found.differs == "input" and found.made_by is None)


def _made_before(
    difference: FirstDifference, process: str, run_pair: RunPair
) -> Localisation | None:
    """Look where a later optimizer's model was made: perhaps before the first step."""
    found = compare_traces(*run_pair(TraceRequest(0), process).traces, 0)
    # This trace ends with the first step's backward pass, and tells what that one read.
    # What only Python can have brought there, a drawn name of the run say, need not be it.
    is_why = difference.is_start or (
        found is not None
        and found.reaches_training
        and found.or_at is None
        and not _is_older(found)
    )
    return found if is_why else None


def _of_pair(
    result: Localising,
    pair: TracedPair,
    step: int,
    process: str,
    run_pair: RunPair,
    run_one: RunOne,
) -> Localisation | None:
    found = compare_traces(*pair.traces, step)
    if found is None:
        return None
    if any(tensor.differing is None for tensor in found.tensors) and not found.reads_uninitialised:
        # More was moved before it than is kept: once more, keeping from there on.
        again = run_pair(TraceRequest(step, keep_from=found.record), process)
        if again.parted is None:
            result.agreed += 1
        else:
            result.parted += 1
        if again.parted is not None and again.earlier is None:
            found = compare_traces(*again.traces, step) or found
    if found.differs == "output" and not found.reads_uninitialised:
        request = TraceRequest(step, executions=_EXECUTIONS, keep_from=found.record)
        guilty = convicted(run_one(request, process), step)
        if guilty is not None and guilty.operation == found.operation:
            found = found.model_copy(update={"is_convicted": True})
    return found


def _convict(result: Localising, step: int, process: str, run_one: RunOne) -> None:
    """Look for an operation that gives two results in one run: the race may have moved."""
    request = TraceRequest(step, executions=_EXECUTIONS)
    trace = run_one(request, process)
    # Under the trace memory is allocated in another order, and garbage may happen to be equal.
    twice, raw = convicted(trace, step), uninitialised_read(trace, step)
    # That memory is read which nothing has written, and thrown away, is no difference at all.
    reaching = (one for one in (twice, raw) if one is not None and one.reaches_training)
    result.found = next(reaching, twice)
    if result.found is None and not result.parted:
        result.notes.append(
            f"run again under the trace, the runs did not part up to step {step}, and no "
            "operation of it gave two results"
        )
