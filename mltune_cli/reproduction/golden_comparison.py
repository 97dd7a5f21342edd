"""A check's runs held against a golden: reproduced, or who changed the result."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mltune_cli.reproduction.golden import GoldenEntry
from mltune_cli.reproduction.report import (
    FirstDifference,
    GoldenChange,
    GoldenComparison,
    ReproductionReport,
)
from mltune_cli.reproduction.witness_files import OrderedComparison

_MOST_CHANGES = 12


def held_against(
    report: ReproductionReport,
    entries: Sequence[GoldenEntry],
    current: GoldenEntry | None,
    *,
    source: Path,
    record_command: str,
    allow_new_environment: bool,
) -> ReproductionReport:
    """Return a report whose verdict is about the golden.

    Args:
        report: of the runs among themselves.
        entries: of the golden.
        current: what the first run gave; None where the runs differ, and none came to its end.
        source: the golden's name.
        record_command: what makes these runs the golden.
        allow_new_environment: where the golden has nothing for this environment, the runs among
            themselves decide.
    """
    if current is None:
        golden = GoldenComparison(
            source=str(source), verdict="not_deterministic", environment_class=None,
            record_command=record_command,
        )  # fmt: skip
        return report.model_copy(update={"golden": golden})
    golden = _compared(entries, current, str(source), record_command)
    verdict, reason, notes = report.verdict, report.reason, list(report.notes)
    if golden.verdict == "code_changed":
        verdict = "different"
    elif golden.verdict == "environment_changed":
        is_outdated = not any(entry.digests == current.digests for entry in entries)
        sentence = f"{source} has no golden for this environment"
        if entries and is_outdated:
            sentence = f"{source} was recorded when digests were computed in another way"
        if allow_new_environment:
            notes.append(f"{sentence}; that the runs are equal decides alone")
        else:
            verdict, reason = "no_verdict", sentence
    elif golden.environment_class != current.environment_class:
        notes.append(f"{source} has no golden for this environment, yet every digest equals one's")
    return report.model_copy(
        update={"verdict": verdict, "reason": reason, "notes": notes, "golden": golden}
    )


def _compared(
    entries: Sequence[GoldenEntry], current: GoldenEntry, source: str, record_command: str
) -> GoldenComparison:
    outdated, entries = entries, [e for e in entries if e.digests == current.digests]
    own = [e for e in entries if e.environment_class == current.environment_class]
    parted = {id(entry): first_difference(entry, current) for entry in own or entries}
    equal = next((entry for entry in own or entries if parted[id(entry)] is None), None)
    if equal is not None:
        return _about(equal, source, record_command, verdict="reproduced")
    if own:
        return _about(
            own[0], source, record_command,
            verdict="code_changed",
            first_difference=parted[id(own[0])],
            changes=list(_changes(own[0], current)),
        )  # fmt: skip
    if outdated and not entries:
        was, now = (f"digests of kind {one.digests}" for one in (outdated[0], current))
        return _about(
            outdated[0], source, record_command,
            verdict="environment_changed",
            changes=[GoldenChange(kind="mltune", name="digests", was=was, now=now)],
        )  # fmt: skip
    if not entries:
        return GoldenComparison(
            source=source, verdict="environment_changed", environment_class=None,
            record_command=record_command,
        )  # fmt: skip
    nearest = min(entries, key=lambda e: len(list(_differing(e.environment, current.environment))))
    changes = [
        GoldenChange(kind="environment", name=name, was=was, now=now)
        for name, was, now in _differing(nearest.environment, current.environment)
    ]
    return _about(
        nearest, source, record_command,
        verdict="environment_changed", changes=changes[:_MOST_CHANGES],
    )  # fmt: skip


def _about(entry: GoldenEntry, source: str, record_command: str, **found: Any) -> GoldenComparison:
    return GoldenComparison(
        source=source,
        environment_class=entry.environment_class,
        commit=entry.commit,
        steps=entry.steps,
        last_loss=entry.last_loss,
        record_command=record_command,
        **found,
    )


def first_difference(golden: GoldenEntry, current: GoldenEntry) -> FirstDifference | None:
    """Return where two trainings part, or None where all that both of them digest is equal."""
    comparison = OrderedComparison(2)
    for number, entry in enumerate((golden, current)):
        for name, stream in entry.witness().items():
            for record in stream:
                found = comparison.add(number, name, record)
                if found is not None:
                    return _named(found, golden)
    missing = comparison.missing()
    return None if missing is None else _named(missing, golden)


def _named(found: FirstDifference, golden: GoldenEntry) -> FirstDifference:
    own = {"process": None, "optimizer": None} if golden.kind == "recipe" else {}
    return found.model_copy(update={"runs": (0, 1), **own})


def _changes(golden: GoldenEntry, current: GoldenEntry) -> Iterator[GoldenChange]:
    if golden.subject != current.subject:
        yield GoldenChange(
            kind="training", name=golden.kind, was=golden.subject, now=current.subject
        )
    for name, was, now in _differing(golden.recipe, current.recipe):
        yield GoldenChange(kind="recipe", name=name, was=was, now=now)
    for name, was, now in _differing(golden.inputs, current.inputs):
        yield GoldenChange(kind="input", name=name, was=was, now=now)
    if golden.mltune != current.mltune:
        yield GoldenChange(kind="mltune", name="version", was=golden.mltune, now=current.mltune)


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            yield name, str(was.get(name, "nothing")), str(now.get(name, "nothing"))
