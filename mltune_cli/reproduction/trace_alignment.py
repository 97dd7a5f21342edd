"""Calls that one of two runs makes alone, before both go on alike."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from mltune_cli.reproduction.trace_flow import TraceFlow
from mltune_cli.witness.trace_record import TraceRecord

# Whoever writes a log calls few operations; more, and the runs are on different ways.
_MOST_ALONE = 64
# So many calls must follow alike.
_ALIKE = 8


def is_in_passing(first: Iterable[TraceRecord], second: Iterable[TraceRecord], place: int) -> bool:
    """Tell whether one run calls something in passing, and trains on nothing that it gave.

    What writes a log every few seconds does. A number that Python reads of it may be trained on
    all the same: that is not known then.

    Args:
        first: what one run calls from the first call on that the other one does not make.
        second: what the other one calls.
        place: of that call in the traces.
    """
    rest = [iter(first), iter(second)]
    ahead = [list(itertools.islice(calls, _MOST_ALONE + _ALIKE)) for calls in rest]
    for which in (0, 1):
        alone = _calls_alone(ahead[which], ahead[1 - which])
        if alone is not None:
            whole = itertools.chain(ahead[which], rest[which])
            return not _are_trained_on(whole, place, alone)
    return False


def _calls_alone(longer: Sequence[TraceRecord], shorter: Sequence[TraceRecord]) -> int | None:
    """Return how many calls one run makes before both go on alike; None where they do not."""
    following = [_kind(call) for call in shorter[:_ALIKE]]
    for count in range(1, min(len(longer), _MOST_ALONE) + 1):
        if [_kind(call) for call in longer[count : count + _ALIKE]] == following:
            return count
    return None


def _kind(call: TraceRecord) -> tuple[object, ...]:
    shapes = tuple((one.dtype, one.shape) for one in (*call.inputs, *call.outputs))
    return call.operation, call.phase, call.module, call.node, shapes


def _are_trained_on(calls: Iterator[TraceRecord], place: int, alone: int) -> bool:
    flow = TraceFlow()
    for number, call in enumerate(calls):
        is_alone = number < alone
        if is_alone and call.random_state is not None:  # others draw other numbers after it
            return True
        flow.add(place + number, call, {place} if is_alone else frozenset())
        if place in flow.reaching:
            return True
    return False
