"""The caches: of tokenised rows, and of what comes from the hub."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from mltune_cli.diagnosis.finding import Check, Finding, in_order, judged
from mltune_cli.diagnosis.hub import hub_cache
from mltune_cli.diagnosis.places import write_problem
from mltune_cli.diagnosis.subject import Subject, is_hub_name


def look(subject: Subject) -> Sequence[Finding]:
    """Write into both, and take it away again."""
    recipe = subject.recipe
    needs_hub = any(
        is_hub_name(name)
        for name in (recipe.model.name_or_path, recipe.data.train, recipe.data.validation)
    )
    cases = (
        ("tokenised rows", tokenised_cache(subject.variables), "MLTUNE_CACHE", True),
        ("the hub", hub_cache(subject.variables), "HF_HOME", needs_hub),
    )
    findings = []
    for what, folder, variable, is_needed in cases:
        problem = write_problem(folder)
        if problem is None:
            continue
        writable = shlex.quote(str(Path("~").expanduser() / f".cache-{variable.lower()}"))
        findings.append(
            judged(
                is_needed,
                f"the cache of {what}, {folder}, cannot be written: {problem}",
                "the training will not start"
                if is_needed
                else "a recipe with a model or rows from the hub will not start",
                f"set {variable} to a folder that can be written, or mend the one that is named",
                command=f"export {variable}={writable}",
            )
        )
    return findings or [in_order(f"caches can be written: {cases[0][1]}, {cases[1][1]}")]


def tokenised_cache(variables: Mapping[str, str]) -> Path:
    """Return where training keeps tokenised rows."""
    if folder := variables.get("MLTUNE_CACHE"):
        return Path(folder)
    base = variables.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(base) / "mltune"


CHECK = Check("caches", "caches", look)
