"""What the records of two runs say besides their digests."""

import ast
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from mltune_cli.reproduction.report import FirstDifference
from mltune_cli.witness.record import WitnessRecord

Pair = tuple[Sequence[WitnessRecord], Sequence[WitnessRecord]]
# So many rows must have come for each place at which some are left out, to call it that.
_ROWS_TO_A_GAP = 4
# So many rows are hardly in order by chance.
_TELLING = 6


def differing_settings(records: Pair) -> Iterator[tuple[str, str, str]]:
    """Yield what both runs said about torch and the machine at their start, where it differs.

    Each with its name and what it was in the two runs.
    """
    mine, theirs = map(_settings, records)
    for name in mine:
        if theirs and mine[name] != theirs.get(name):
            yield name, str(mine[name]), str(theirs.get(name))


def seeds(records: Sequence[WitnessRecord], step: int) -> list[int]:
    """Return what `torch.manual_seed` was given before the last optimizer began, in order.

    Args:
        records: of one process.
        step: optimizers that began after it are left out.
    """
    starts = [record for record in records if record.step == 0 and record.step_within <= step]
    found = _start_fact(starts[::-1], "seeds", [])
    return list(found) if isinstance(found, list) else []


def drawn_before_seed(records: Sequence[WitnessRecord], optimizer: str | None = None) -> int:
    """Return how many trained tensors were drawn before a seed that came too late for them.

    Args:
        records: of one process.
        optimizer: that trains them; None for all.
    """
    return sum(
        int(record.facts.get("drawn_before_seed", 0))
        for record in records
        if record.step == 0 and record.facts.get("seeds") and optimizer in (None, record.source)
    )


def trained_tensors(records: Sequence[WitnessRecord]) -> int:
    """Return how many tensors the optimizers of a run train."""
    return sum(int(record.facts.get("trained", 0)) for record in records if record.step == 0)


def threads_of_cpu(records: Sequence[WitnessRecord]) -> int:
    """Return with how many threads a run computed on a CPU; 1 on a GPU and where not known."""
    settings = _settings(records)
    return int(settings.get("threads", 1)) if settings.get("device", "cpu") == "cpu" else 1


def searches_for_kernels(records: Pair) -> bool:
    """Tell whether both runs were on a GPU and let cuDNN look for the fastest convolution."""
    return all(
        settings.get("device", "cpu") != "cpu" and settings.get("cudnn benchmark") is True
        for settings in map(_settings, records)
    )


def rows_are_the_same(records: Pair, step: int) -> bool | None:
    """Tell whether the second run saw the first run's rows in another order, up to a step.

    False where it saw others, or left some out. None where the rows of a batch could not be told
    apart, or are too few to tell, or came in the same order: then something else of the batch
    differs.
    """
    at_step = [row for record in records[1] if record.step == step for row in _rows(record)]
    first, second = ([row for record in run for row in _rows(record)] for run in records)
    if not at_step or not first:
        return None
    if not set(at_step) <= set(first):
        return False
    if second == first[: len(second)]:
        return None
    gaps = _gaps(second, first)
    if gaps is None:
        return True
    # In the same order with some left out: no shuffling does that, but where few rows came, any
    # order looks like it.
    if len(gaps) * _ROWS_TO_A_GAP <= len(second):
        return False
    if not set(second).isdisjoint(itertools.chain(*gaps)):  # which came at another place
        return True
    return False if len(second) >= _TELLING else None


def _gaps(part: Sequence[str], whole: Sequence[str]) -> list[Sequence[str]] | None:
    """Return the rows that a part leaves out, place by place; None where it has another order."""
    taken, gaps = 0, []
    for row in part:
        try:
            place = whole.index(row, taken)
        except ValueError:
            return None
        if place > taken:
            gaps.append(whole[taken:place])
        taken = place + 1
    return gaps


def _rows(record: WitnessRecord) -> list[str]:
    rows = record.facts.get("rows", [])
    return list(rows) if isinstance(rows, list) else []


def differing_hyperparameters(records: Pair, step: int) -> list[tuple[str, str, str]]:
    """Return the settings of the optimizer that differ at a step, each with its two values."""
    groups = [
        next((_groups(record) for record in run if record.step == step and _groups(record)), [])
        for run in records
    ]
    found = []
    for mine, theirs in zip(*groups, strict=False):
        found += [
            (name, value, theirs.get(name, "nothing"))
            for name, value in mine.items()
            if value != theirs.get(name)
        ]
    return found


def differing_tensors(records: Pair, difference: FirstDifference) -> list[str]:
    """Return the names of the tensors of the first stage that differ there, in order."""
    stage = difference.stage.removeprefix("clipped_")
    tensors: list[dict[str, str]] = [
        next(
            (
                record.facts["tensors"].get(stage, {})
                for record in run
                if _is_of(record, difference) and "tensors" in record.facts
            ),
            {},
        )
        for run in records
    ]
    mine, theirs = tensors
    return [name for name in mine if mine[name] != theirs.get(name)]


def _is_of(record: WitnessRecord, difference: FirstDifference) -> bool:
    return (
        record.step_within == difference.step
        and (record.step == 0) == difference.is_start
        and difference.optimizer in (None, record.source)
    )


def _groups(record: WitnessRecord) -> list[dict[str, str]]:
    try:
        return [dict(group) for group in ast.literal_eval(record.facts["hyperparameters"])]
    except (KeyError, ValueError, SyntaxError, TypeError):
        return []


def _settings(records: Sequence[WitnessRecord]) -> dict[str, Any]:
    """Return what a run said about torch and the machine at its start; nothing where unknown."""
    found = _start_fact(records, "settings", {})
    return found if isinstance(found, dict) else {}


def _start_fact(records: Sequence[WitnessRecord], name: str, missing: object) -> object:
    return next((r.facts[name] for r in records if r.step == 0 and name in r.facts), missing)
