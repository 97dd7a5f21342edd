"""A difference with all that is known of it, and what that says whatever the cause is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mltune_cli.reproduction.observations import (
    differing_hyperparameters,
    rows_are_the_same,
    seeds,
    threads_of_cpu,
)
from mltune_cli.reproduction.report import FirstDifference, Localisation
from mltune_cli.witness.record import WitnessRecord


@dataclass(frozen=True)
class Case:
    """What is known about a difference.

    Attributes:
        difference: the first one.
        localisation: the operation, where it was found.
        parted_again: how often the two runs, run again, parted again.
        agreed: how often they did not.
        records: of the process in question, in the two runs.
        variation: conditions that the second run had and the first had not.
        left_files: what the first run left where the second may have read it.
    """

    difference: FirstDifference
    localisation: Localisation | None
    parted_again: int
    agreed: int
    records: tuple[Sequence[WitnessRecord], Sequence[WitnessRecord]]
    variation: Sequence[str] = ()
    left_files: Sequence[str] = ()


def matters(case: Case) -> bool:
    """Tell whether something is trained on what came of the call, or it is what differs itself."""
    where = case.localisation
    return where is not None and (where.reaches_training or case.difference.stage == "buffers")


def seen(case: Case) -> Iterator[str]:
    """Say what the records show, whatever the cause is."""
    mine, theirs = seeds_given(case)
    if mine != theirs:
        yield (
            f"torch.manual_seed was given {_listed(mine)} in one run and {_listed(theirs)} in the "
            "other"
        )
    for name, one, other in differing_hyperparameters(case.records, case.difference.step):
        yield f"the optimizer's {name} was {one} in one run and {other} in the other"
    where = case.localisation
    if where is not None and where.or_at is not None:
        yield (
            f"Python has read a number of what {call_of(where)} gave, and {where.or_at} parts as "
            "well, because of that or by itself"
        )
    if case.difference.stage == "batch":
        same = rows_are_the_same(case.records, case.difference.step)
        if same is not None:
            yield (
                "the same rows came, in another order" if same
                else "a run saw rows that the other one did not see"
            )  # fmt: skip


def seeds_given(case: Case) -> tuple[list[int], list[int]]:
    """Return what both runs gave to `torch.manual_seed` before the steps parted."""
    mine, theirs = (seeds(records, case.difference.step) for records in case.records)
    return mine, theirs


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "nothing"


def first_use(case: Case) -> Iterator[str]:
    """Say what is known of differences that do not come again, where it may be the reason."""
    several = threads_of_cpu(case.records[0])
    if case.difference.stage != "loss" or several == 1 or case.parted_again:
        return
    yield (
        f"torch computed with {several} threads: the first call of exp, cos or another vector "
        "function by several threads at once is known to give other numbers now and then, see "
        "docs/causes.md; whether it did here cannot be told afterwards"
    )


def call_of(where: Localisation) -> str:
    """Say which call, and where it stands."""
    parts = [where.operation]
    if where.module:
        parts.append(f"in {where.module}")
    place = where.frame or where.library_frame
    if place:
        parts.append(f"at {place}")
    return " ".join(parts)
