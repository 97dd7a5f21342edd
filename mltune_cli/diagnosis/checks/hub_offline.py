"""The switches that keep the hub away, against what the recipe needs from it."""

from collections.abc import Sequence

from mltune_cli.diagnosis.finding import Check, Finding, broken, in_order
from mltune_cli.diagnosis.hub import RepositoryKind, cached_snapshot, offline_switches
from mltune_cli.diagnosis.subject import Subject, is_hub_name


def look(subject: Subject) -> Sequence[Finding]:
    """Tell whether something must be fetched that may not be."""
    needed = _needed(subject)
    if not needed:
        return [in_order("the recipe needs nothing from the hub; mltune keeps it switched off")]
    switches = offline_switches(subject.variables)
    if not switches:
        return [in_order(f"the hub is switched on, for {', '.join(name for _, name, _ in needed)}")]
    missing = [
        (kind, name)
        for kind, name, revision in needed
        if cached_snapshot(subject.variables, kind, name, revision) is None
    ]
    if not missing:
        return [in_order(f"{' and '.join(switches)} set, and all that is needed is in the cache")]
    return [
        broken(
            f"{' and '.join(switches)} switched the hub off, and {name} is not in the cache",
            "the training will not start",
            "switch it on for one run, which fills the cache; or download it beforehand",
            command=f"unset {' '.join(switches)}",
        )
        for _, name in missing
    ]


def _needed(subject: Subject) -> list[tuple[RepositoryKind, str, str | None]]:
    recipe = subject.recipe
    found: list[tuple[RepositoryKind, str, str | None]] = []
    if is_hub_name(recipe.model.name_or_path):
        found.append(("model", recipe.model.name_or_path or "", recipe.model.revision))
    for name in (recipe.data.train, recipe.data.validation):
        if is_hub_name(name):
            repository = (name or "").partition(":")[0]
            found.append(("dataset", repository, recipe.data.revision))
    return list(dict.fromkeys(found))


CHECK = Check("hub-offline", "offline switches", look)
