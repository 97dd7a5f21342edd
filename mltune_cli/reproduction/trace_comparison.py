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
from mltune_cli.witness.trace_record import END, UNINITIALISED, TracedTensor, TraceRecord

# Operations whose result comes from where no tensor was: from Python's values, from memory that was
# reserved, from the storage that a loader's process shared.
FROM_OUTSIDE = ("aten.lift_fresh", "aten.empty", "aten.set_")
_READS_SHAPES = (
    "aten.empty_like", "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.rand",
)  # fmt: skip
# One call, as two traces have it.
_Pair = tuple[TraceRecord, TraceRecord]
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
    pair: _Pair
    differing: Differing

    def draws_from(self, generator: str) -> bool:
        """Tell whether it draws random numbers, so that all that draws after it draws others."""
        return any(
            record.random_state is not None and _generator(record) == generator
            for record in self.pair
        )

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
        was_silent = self.differing == "input" and not _is_from_outside(self.pair)
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
    pairs = itertools.zip_longest(first.records(), second.records(), fillvalue=_NOTHING)
    for place, (mine, theirs) in enumerate(pairs):
        differing = _differing(mine, theirs)
        reasons = _reasons(differing, (mine, theirs), flow, partings)
        parts = differing is not None and not reasons
        if differing in ("argument", "input") and reasons == flow.numbers and reasons:
            through_python = through_python or (reasons, mine)
        if differing is not None and parts:
            partings.append(_Parting(place, (mine, theirs), differing))
            if differing == "input":
                # The same memory, read again, is no other parting, whatever came of the first time.
                flow.follow((one for one, _ in _inputs_apart((mine, theirs))), place)
        gives_others = not mine.outputs or _digests(mine.outputs) != _digests(theirs.outputs)
        flow.add(place, mine, {place} if parts else reasons, gives_others=gives_others)
        operations.append(mine.operation)
        # After another operation was called, calls have no counterparts.
        if differing == "operation" or (partings and partings[0].place in flow.reaching):
            break
    if not partings:
        return None
    chosen, reaches = partings[0], partings[0].place in flow.reaching
    if chosen.differing == "operation":
        rests = [itertools.islice(one.records(), chosen.place, None) for one in (first, second)]
        reaches = not is_in_passing(rests[0], rests[1], chosen.place)
    elif not reaches:
        others = (one for one in partings[1:] if one.is_evident and one.place in flow.reaching)
        chosen = next(others, chosen)
        # What nothing is seen to read may be read after Python had it; or be what is kept.
        reaches = chosen is not partings[0] or chosen.is_a_result
    found = _localisation(chosen, operations, (first, second), step, reaches_training=reaches)
    if through_python is None or chosen.place not in through_python[0]:
        return found
    return found.model_copy(update={"or_at": _spelled(through_python[1])})


def _reasons(
    differing: Differing | None,
    pair: _Pair,
    flow: TraceFlow,
    before: Collection[_Parting],
) -> Set[int]:
    """Return the calls before because of which one may part; none where it parts by itself."""
    if differing in ("argument", "operation"):
        return flow.numbers
    if differing == "random state":
        return {one.place for one in before if one.draws_from(_generator(pair[0]))}
    if differing == "input":
        followed = frozenset().union(*(flow.origins(mine) for mine, _ in _inputs_apart(pair)))
        return flow.numbers if not followed and _is_from_outside(pair) else followed
    return frozenset()


def _inputs_apart(pair: _Pair) -> list[tuple[TracedTensor, TracedTensor]]:
    """Return the inputs that differ."""
    return [
        (mine, theirs)
        for mine, theirs in zip(pair[0].inputs, pair[1].inputs, strict=False)
        if mine.digest != theirs.digest
    ]


def _is_from_outside(pair: _Pair) -> bool:
    """Tell whether an input differs that torch was not seen to make."""
    return any(mine.made_by is None for mine, _ in _inputs_apart(pair))


def _generator(record: TraceRecord) -> str:
    """Return which random numbers a call draws: of Python, NumPy or torch."""
    home = record.operation.partition(".")[0]
    return home if home in ("python", "numpy") else "torch"


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


def _differing(mine: TraceRecord, theirs: TraceRecord) -> Differing | None:
    """Return what parts first, in the order in which a call comes to be."""
    if mine.operation != theirs.operation:
        return "operation"
    if mine.scalars != theirs.scalars or _kinds(mine.inputs) != _kinds(theirs.inputs):
        return "argument"
    if _digests(mine.inputs) != _digests(theirs.inputs):
        return "input"
    if mine.random_state != theirs.random_state:
        return "random state"
    if _digests(mine.outputs) != _digests(theirs.outputs):
        return "output"
    return None


def _digests(tensors: tuple[TracedTensor, ...]) -> list[str]:
    return [tensor.digest for tensor in tensors]


def _kinds(tensors: tuple[TracedTensor, ...]) -> list[tuple[str, tuple[int, ...]]]:
    return [(tensor.dtype, tensor.shape) for tensor in tensors]


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
    differing, (mine, theirs) = parting.differing, parting.pair
    values: tuple[str, str] | None = None
    tensors: list[TensorDifference] = []
    made_by, outside = None, False
    if differing == "operation":
        values = (_spelled(mine), _spelled(theirs))
    elif differing == "argument":
        has_other_kinds = _kinds(mine.inputs) != _kinds(theirs.inputs)
        values = (_arguments(mine, has_other_kinds), _arguments(theirs, has_other_kinds))
    elif differing == "random state":
        values = (mine.random_state or "", theirs.random_state or "")
    else:
        lists = (mine.inputs, theirs.inputs)
        if differing == "output":
            lists = (mine.outputs, theirs.outputs)
        apart = [
            (place, one, other)
            for place, (one, other) in enumerate(zip(*lists, strict=False))
            if one.digest != other.digest
        ]
        tensors = [
            _tensor_difference(f"{differing} {place}", one, (one.digest, other.digest), traces)
            for place, one, other in apart
        ]
        makers = [one.made_by for _, one, _ in apart if one.made_by is not None]
        if makers and differing == "input":
            # All calls before this one were equal, so what its maker gave was the same.
            made_by = operations[makers[0]] if makers[0] >= 0 else "the step before"
            outside = not made_by.startswith(("c10d", "_c10d"))
    # A call that one run alone makes is shown by the run that makes it.
    shown = theirs if mine is _NOTHING else mine
    return Localisation(
        **_place(shown, parting.place, traces[0].process, step),
        differs=differing,
        values=values,
        tensors=tensors,
        reads_uninitialised=any(one.digest == UNINITIALISED for one in mine.inputs),
        was_written_outside=outside,
        made_by=made_by,
        reaches_training=reaches_training,
    )


def _spelled(record: TraceRecord) -> str:
    where = f" at {record.frame or record.library_frame}" if record is not _NOTHING else ""
    return f"{record.operation}{where}"


def _arguments(record: TraceRecord, with_kinds: bool) -> str:
    kinds = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in _kinds(record.inputs)[:8])
    return f"{record.scalars} of {kinds}" if with_kinds else record.scalars


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
