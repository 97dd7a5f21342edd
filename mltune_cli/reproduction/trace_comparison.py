"""Two traces of one step, compared call by call up to the first that parts."""

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mltune_cli.errors import NoVerdictError
from mltune_cli.reproduction.report import Differing, Localisation, TensorDifference
from mltune_cli.reproduction.tensor_files import raw_tensor, tensor_distance
from mltune_cli.reproduction.trace_alignment import is_in_passing
from mltune_cli.reproduction.trace_flow import TraceFlow
from mltune_cli.reproduction.trace_pair import (
    Pair,
    differing,
    digests,
    generator,
    inputs_apart,
    is_from_outside,
    kinds,
)
from mltune_cli.witness.trace_record import END, UNINITIALISED, TracedTensor, TraceRecord

# Operations whose result comes from where no tensor was: from Python's values, from memory that was
# reserved, from the storage that a loader's process shared.
FROM_OUTSIDE = ("aten.lift_fresh", "aten.empty", "aten.set_")
_READS_SHAPES = (
    "aten.empty_like", "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.rand",
)  # fmt: skip
_NOTHING = TraceRecord("(the step has ended)", "elsewhere", "")


@dataclass(frozen=True)
class TraceFiles:
    """What the trace of one process left in a run's witness folder.

    Attributes:
        folder: of the witness.
        process: `main`, or `rank-3`.
        stem: name of the file, where this run has another one for the process.
    """

    folder: Path
    process: str
    stem: str | None = None

    @property
    def _file(self) -> Path:
        return self.folder / "trace" / f"{self.stem or self.process}.jsonl"

    @property
    def values(self) -> Path:
        """The folder of the kept tensors."""
        return self.folder / "trace" / "values"

    def is_whole(self) -> bool:
        """Tell whether the trace came to its end."""
        if not self._file.is_file():
            return False
        with self._file.open("rb") as stream:
            stream.seek(max(0, self._file.stat().st_size - 64))
            last = stream.read().splitlines()[-1:]
        return bool(last) and last[0].startswith(f'{{"{END}"'.encode())

    def records(self) -> Iterator[TraceRecord]:
        """Yield the trace's records.

        Raises:
            NoVerdictError: there is no trace, or a line of it is no record.
        """
        path = self._file
        try:
            with path.open("rb") as stream:
                for line in stream:
                    fields = _fields(line)
                    if END in fields:
                        return
                    yield TraceRecord.from_fields(fields)
        except (OSError, ValueError, TypeError) as error:
            raise NoVerdictError(f"{path}: cannot be read as a trace: {error}") from None


def _fields(line: bytes) -> dict[str, Any]:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError(f"it holds a {type(fields).__name__}")  # noqa: TRY004 - as what json raises
    return fields


@dataclass(frozen=True)
class _Parting:
    """A call at which two traces part, other than in consequence of one before."""

    place: int
    pair: Pair
    differing: Differing

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers, so that all that draws after it draws others."""
        return any(record.random_state is not None for record in self.pair)

    def draws_from(self, whose: str) -> bool:
        """Tell whether it draws those of Python, of NumPy or of torch."""
        return any(generator(one) == whose for one in self.pair if one.random_state is not None)

    @property
    def is_a_result(self) -> bool:
        """Whether torch itself gave two results: nothing that Python did before can be why."""
        mine = self.pair[0]
        reads_garbage = any(tensor.digest == UNINITIALISED for tensor in mine.inputs)
        is_made = not mine.inputs and mine.operation.startswith(FROM_OUTSIDE)
        return self.differing == "output" and not reads_garbage and not is_made

    @property
    def is_evident(self) -> bool:
        """Whether it cannot be in consequence of what parted before, where that is not followed."""
        was_silent = self.differing == "input" and not is_from_outside(self.pair)
        is_torchs = self.differing == "random state" and self.pair[0].operation.startswith("aten.")
        return self.is_a_result or was_silent or is_torchs


def compare_traces(first: TraceFiles, second: TraceFiles, step: int) -> Localisation | None:
    """Return the call at which two traces part; None where they are equal.

    It is the first one, unless nothing of the step is known to be trained on what came of it, and
    something is on what came of a later one that parts by itself.

    Raises:
        NoVerdictError: a trace is missing or damaged.
    """
    operations: list[str] = []
    partings: list[_Parting] = []
    flow = TraceFlow()
    through_python: tuple[Set[int], TraceRecord] | None = None
    for place, pair in enumerate(
        itertools.zip_longest(first.records(), second.records(), fillvalue=_NOTHING)
    ):
        mine, theirs = pair
        what = differing(pair)
        reasons = _reasons(what, pair, flow, partings)
        parts = what is not None and not reasons.places
        if what is not None and parts:
            partings.append(_Parting(place, pair, what))
            if what == "input":
                # The same memory, read again, is no other parting, whatever came of the first time.
                flow.follow(inputs_apart(pair), place)
        elif what is not None and reasons.are_pythons:
            through_python = through_python or (reasons.places, mine)
        gives_others = not mine.outputs or digests(mine.outputs) != digests(theirs.outputs)
        flow.add(
            place, mine, {place} if parts else reasons.places, reads=inputs_apart(pair),
            gives_others=gives_others,
        )  # fmt: skip
        operations.append(mine.operation)
        # After another operation was called, calls have no counterparts.
        if what == "operation" or (partings and partings[0].place in flow.reaching):
            break
    if not partings:
        return None
    chosen, reaches = partings[0], partings[0].place in flow.reaching
    if chosen.differing == "operation":
        rests = [itertools.islice(one.records(), chosen.place, None) for one in (first, second)]
        reaches = not is_in_passing(rests[0], rests[1])
    elif not reaches:
        others = (one for one in partings[1:] if one.is_evident and one.place in flow.reaching)
        chosen = next(others, chosen)
        # What nothing is seen to read may be read after Python had it; or be what is kept.
        reaches = chosen is not partings[0] or chosen.is_a_result
    found = _localisation(chosen, operations, (first, second), step, reaches_training=reaches)
    if through_python is None or chosen.place not in through_python[0]:
        return found
    return found.model_copy(update={"or_at": _spelled(through_python[1])})


@dataclass(frozen=True)
class _Reasons:
    """Why a call parts: the calls before because of which it may.

    Attributes:
        places: of those calls; none where it parts by itself.
        are_pythons: only Python, which had a number of them, can have made one of the other.
    """

    places: Set[int] = frozenset()
    are_pythons: bool = False


def _reasons(
    what: Differing | None, pair: Pair, flow: TraceFlow, before: Collection[_Parting]
) -> _Reasons:
    if what in ("argument", "operation"):
        return _Reasons(flow.numbers, are_pythons=True)
    if what == "random state":
        drawing = {one.place: one.draws_from(generator(pair[0])) for one in before if one.draws}
        own = {place for place, is_own in drawing.items() if is_own}
        # A seed may be drawn from another generator.
        return _Reasons(own) if own else _Reasons(drawing.keys(), are_pythons=True)
    if what == "input":
        followed = frozenset().union(*map(flow.origins, inputs_apart(pair)))
        if followed or not is_from_outside(pair):
            return _Reasons(followed)
        return _Reasons(flow.numbers, are_pythons=True)
    return _Reasons()


def convicted(trace: TraceFiles, step: int) -> Localisation | None:
    """Return the first call that gave two results from the same inputs; None where none did.

    One that the step is trained on, where there is such a one.

    Args:
        trace: one whose operations were executed several times.
        step: that was traced.
    """
    found = _first_that_reaches(trace, lambda record: bool(record.unequal))
    if found is None:
        return None
    number, record, reaches = found
    return Localisation(
        **_place(record, number, trace.process, step),
        differs="output",
        tensors=[
            _tensor_difference(
                f"output {place}", record.outputs[place],
                (record.outputs[place].digest, digest), (trace, trace),
            )
            for place, digest in record.unequal
        ],
        is_convicted=True,
        reaches_training=reaches,
    )  # fmt: skip


def uninitialised_read(trace: TraceFiles, step: int) -> Localisation | None:
    """Return the first call that reads memory which nothing has written; None where none does.

    One that the step is trained on, where there is such a one.
    """
    found = _first_that_reaches(
        trace,
        lambda record: (
            not record.operation.startswith(_READS_SHAPES)
            and any(tensor.digest == UNINITIALISED for tensor in record.inputs)
        ),
    )
    if found is None:
        return None
    number, record, reaches = found
    return Localisation(
        **_place(record, number, trace.process, step),
        differs="output",
        reads_uninitialised=True,
        reaches_training=reaches,
    )


def _first_that_reaches(
    trace: TraceFiles, is_guilty: Callable[[TraceRecord], bool]
) -> tuple[int, TraceRecord, bool] | None:
    flow = TraceFlow()
    guilty: dict[int, TraceRecord] = {}
    for place, record in enumerate(trace.records()):
        if is_guilty(record):
            guilty[place] = record
        flow.add(place, record, {place} & guilty.keys())
        if guilty and min(guilty) in flow.reaching:
            break
    if not guilty:
        return None
    # What Python has read a number of may be trained on too.
    reaching = guilty.keys() & (flow.reaching | flow.numbers)
    place = min(reaching, default=min(guilty))
    return place, guilty[place], bool(reaching)


def _place(record: TraceRecord, number: int, process: str, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "process": process,
        "record": number,
        "operation": record.operation,
        "phase": record.phase,
        "module": record.module,
        "node": record.node,
        "frame": record.frame,
        "library_frame": record.library_frame,
    }


def _localisation(
    parting: _Parting,
    operations: list[str],
    traces: tuple[TraceFiles, TraceFiles],
    step: int,
    *,
    reaches_training: bool,
) -> Localisation:
    what, (mine, theirs) = parting.differing, parting.pair
    values: tuple[str, str] | None = None
    tensors: list[TensorDifference] = []
    made_by, outside = None, False
    if what == "operation":
        values = (_spelled(mine), _spelled(theirs))
    elif what == "argument":
        has_other_kinds = kinds(mine.inputs) != kinds(theirs.inputs)
        values = (_arguments(mine, has_other_kinds), _arguments(theirs, has_other_kinds))
    elif what == "random state":
        values = (mine.random_state or "", theirs.random_state or "")
    else:
        lists = (mine.inputs, theirs.inputs)
        if what == "output":
            lists = (mine.outputs, theirs.outputs)
        apart = [
            (place, one, other)
            for place, (one, other) in enumerate(zip(*lists, strict=False))
            if one.digest != other.digest
        ]
        tensors = [
            _tensor_difference(f"{what} {place}", one, (one.digest, other.digest), traces)
            for place, one, other in apart
        ]
        makers = [one.made_by for _, one, _ in apart if one.made_by is not None]
        if makers and what == "input":
            # All calls before this one were equal, so what its maker gave was the same.
            made_by = operations[makers[0]] if makers[0] >= 0 else "the step before"
            outside = not made_by.startswith(("c10d", "_c10d"))
    # A call that one run alone makes is shown by the run that makes it.
    shown = theirs if mine is _NOTHING else mine
    return Localisation(
        **_place(shown, parting.place, traces[0].process, step),
        differs=what,
        values=values,
        tensors=tensors,
        reads_uninitialised=any(one.digest == UNINITIALISED for one in mine.inputs),
        was_written_outside=outside,
        made_by=made_by,
        reaches_training=reaches_training,
    )


def _spelled(record: TraceRecord) -> str:
    where = record.frame or record.library_frame
    return f"{record.operation} at {where}" if where else record.operation


def _arguments(record: TraceRecord, with_kinds: bool) -> str:
    if not with_kinds:
        return record.scalars
    tensors = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in kinds(record.inputs)[:8])
    return f"{record.scalars} of {tensors}"


def _tensor_difference(
    name: str,
    tensor: TracedTensor,
    digests: tuple[str, str],
    traces: tuple[TraceFiles, TraceFiles],
) -> TensorDifference:
    elements = 1
    for size in tensor.shape:
        elements *= size
    found = TensorDifference(
        name=name, dtype=tensor.dtype, shape=list(tensor.shape), elements=elements
    )
    paths = [trace.values / digest for trace, digest in zip(traces, digests, strict=True)]
    if UNINITIALISED in digests or not all(path.is_file() for path in paths):
        return found
    mine, theirs = (
        raw_tensor(path.read_bytes(), tensor.dtype, list(tensor.shape)) for path in paths
    )
    apart = tensor_distance(mine, theirs) if mine is not None and theirs is not None else None
    if apart is None:
        return found
    return found.model_copy(
        update={
            "differing": apart.differing,
            "largest_ulps": apart.largest_ulp,
            "largest_difference": apart.largest_absolute,
        }
    )
