"""Calls that one of two runs makes alone, before both go on alike."""

import itertools
from collections.abc import Iterable, Sequence

from mltune_cli.reproduction.trace_flow import TRAINING_PHASES
from mltune_cli.reproduction.trace_pair import Pair, differing, inputs_apart, kinds
from mltune_cli.witness.trace_record import TraceRecord

# Whoever writes a log calls few operations; more, and the runs are on different ways.
_MOST_ALONE = 64
# So many calls must follow alike.
_ALIKE = 8


def is_in_passing(first: Iterable[TraceRecord], second: Iterable[TraceRecord]) -> bool:
    """Tell whether one run calls something in passing, and nothing parts because of it.

    What writes a log every few seconds does. A number that Python reads of it may be trained on
    all the same: that is not known then.

    Args:
        first: what one run calls from the first call on that the other one does not make.
        second: what the other one calls.
    """
    rest = [iter(first), iter(second)]
    ahead = [list(itertools.islice(calls, _MOST_ALONE + _ALIKE)) for calls in rest]
    for which in (0, 1):
        longer, shorter = ahead[which], ahead[1 - which]
        count = _calls_alone(longer, shorter)
        if count is not None:
            alone, after = longer[:count], longer[count:]
            return not any(map(_trains, alone)) and _goes_on_alike(
                itertools.chain(after, rest[which]), itertools.chain(shorter, rest[1 - which])
            )
    return False


def _calls_alone(longer: Sequence[TraceRecord], shorter: Sequence[TraceRecord]) -> int | None:
    """Return how many calls one run makes before both go on alike; None where they do not."""
    following = [_kind(call) for call in shorter[:_ALIKE]]
    for count in range(1, min(len(longer), _MOST_ALONE) + 1):
        if [_kind(call) for call in longer[count : count + _ALIKE]] == following:
            return count
    return None


def _kind(call: TraceRecord) -> tuple[object, ...]:
    return call.operation, call.phase, call.module, kinds(call.inputs), kinds(call.outputs)


def _trains(call: TraceRecord) -> bool:
    # What draws random numbers gives others to all that draw later.
    return call.phase in TRAINING_PHASES or call.random_state is not None


def _goes_on_alike(longer: Iterable[TraceRecord], shorter: Iterable[TraceRecord]) -> bool:
    """Tell whether what comes after is alike, up to a call that parts by itself, if one does."""
    for pair in zip(longer, shorter, strict=False):
        what = differing(pair)
        if what is not None:
            return what == "output" or (what == "input" and _comes_from_outside(pair))
    return True


def _comes_from_outside(pair: Pair) -> bool:
    return all(tensor.made_by is None for tensor in inputs_apart(pair))
