"""One call, as the traces of two runs have it: what parts in it."""

from mltune_cli.reproduction.report import Differing
from mltune_cli.witness.trace_record import TracedTensor, TraceRecord

Pair = tuple[TraceRecord, TraceRecord]


def differing(pair: Pair) -> Differing | None:
    """Return what parts first, in the order in which a call comes to be; None if nothing does."""
    mine, theirs = pair
    if mine.operation != theirs.operation:
        return "operation"
    if mine.scalars != theirs.scalars or kinds(mine.inputs) != kinds(theirs.inputs):
        return "argument"
    if digests(mine.inputs) != digests(theirs.inputs):
        return "input"
    if mine.random_state != theirs.random_state:
        return "random state"
    if digests(mine.outputs) != digests(theirs.outputs):
        return "output"
    return None


def digests(tensors: tuple[TracedTensor, ...]) -> list[str]:
    """Return the digests of some tensors."""
    return [tensor.digest for tensor in tensors]


def kinds(tensors: tuple[TracedTensor, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of some tensors."""
    return [(tensor.dtype, tensor.shape) for tensor in tensors]


def inputs_apart(pair: Pair) -> list[TracedTensor]:
    """Return the inputs that differ, as the first run has them."""
    return [
        mine
        for mine, theirs in zip(pair[0].inputs, pair[1].inputs, strict=False)
        if mine.digest != theirs.digest
    ]


def is_from_outside(pair: Pair) -> bool:
    """Tell whether an input differs that torch was not seen to make."""
    return any(tensor.made_by is None for tensor in inputs_apart(pair))


def generator(record: TraceRecord) -> str:
    """Return whose random numbers a call draws: Python's, NumPy's or torch's."""
    home = record.operation.partition(".")[0]
    return home if home in ("python", "numpy") else "torch"
