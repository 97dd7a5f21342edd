"""`--vary NAME=VALUE` as a condition, and what is wrong with one that cannot be."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mltune_cli.command_secrets import without_secrets
from mltune_cli.errors import UsageError
from mltune_cli.recipe.layers import known_keys, nearest_key
from mltune_cli.recipe.yaml_lines import parse_scalar
from mltune_cli.reproduction.conditions.draft import Condition
from mltune_cli.reproduction.conditions.kinds import ENVIRONMENT_PREFIX, KINDS, Kind, Scope

# Other words for a condition: what it is called where it is set.
_OTHER_NAMES = {
    "pythonhashseed": "hash-seed", "listing": "directory-order", "lang": "locale",
    "lc_all": "locale", "tz": "time-zone", "timezone": "time-zone", "time": "clock",
    "date": "clock", "cwd": "working-directory", "cache": "cold-cache",
    "num_workers": "loader-workers", "workers": "loader-workers", "omp_num_threads": "threads",
    "nproc-per-node": "processes", "resume": "kill-and-resume", "kill": "kill-and-resume",
    "eval_steps": "evaluation",
}  # fmt: skip
_NAME_OF_VARIABLE = re.compile(r"[^=\0\s]+")


@dataclass(frozen=True)
class ListedCondition:
    """A line of `--vary list`."""

    name: str
    values: str
    default: str
    scope: Scope
    meaning: str


def listed_conditions() -> list[ListedCondition]:
    """Return every condition that `--vary` takes."""
    lines = [
        ListedCondition(kind.name, kind.spelled, _told_default(kind), kind.scope, kind.meaning)
        for kind in KINDS.values()
        if kind.is_listed
    ]
    return [
        *lines,
        ListedCondition("env.NAME", "VALUE", "", "both", "an environment variable"),
        ListedCondition("section.key", "VALUE", "", "recipes", "a key of the recipe"),
    ]


def _told_default(kind: Kind) -> str:
    if isinstance(kind.default, str):
        return kind.default or ("" if not kind.spelled else "a new one")
    return "" if kind.default is None else "another one"


def parse_condition(text: str, environment: Mapping[str, str] | None = None) -> Condition:
    """Read `NAME=VALUE`, or `NAME` alone for its default value.

    Args:
        text: what follows `--vary`.
        environment: of the run without the condition; None is this process's own.

    Raises:
        UsageError: there is no such condition, or the value is none of its values.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    shown = without_secrets([text])[0]
    try:
        if kind := KINDS.get(name):
            return Condition(name, _value_of(kind, value if equals else None, environment))
        if name.startswith(ENVIRONMENT_PREFIX):
            return _variable(name, value if equals else None)
        if name in known_keys():
            return _key(name, value if equals else None)
    except ValueError as error:
        raise UsageError(f"--vary {shown}: {error}") from None
    raise UsageError(f"--vary {shown}: no such condition{_suggestion(name)}")


def parse_conditions(
    texts: Iterable[str], environment: Mapping[str, str] | None = None
) -> list[Condition]:
    """Read several, of which no two may have one name.

    Raises:
        UsageError: as `parse_condition`, or two have one name.
    """
    conditions = [parse_condition(text, environment) for text in texts]
    names = [condition.name for condition in conditions if condition.name != "argument"]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--vary {name}: is given twice; a run has one of them")
    return conditions


def _value_of(kind: Kind, value: str | None, environment: Mapping[str, str] | None) -> str:
    if value is None and kind.default is None:
        raise ValueError(f"needs a value: {kind.name}={kind.spelled}")
    if value is None:
        chosen = kind.default
        value = chosen if isinstance(chosen, str) else None
        if callable(chosen):
            value = chosen(os.environ if environment is None else environment)
        return value or ""  # a default is right by itself
    return kind.check(value)


def _variable(name: str, value: str | None) -> Condition:
    variable = name.removeprefix(ENVIRONMENT_PREFIX)
    if not _NAME_OF_VARIABLE.fullmatch(variable):
        raise ValueError("must name an environment variable, such as env.TOKENIZERS_PARALLELISM=0")
    if value is None:
        raise ValueError(f"needs a value: {name}=VALUE")
    if "\0" in value:
        raise ValueError("holds a character that no variable can have")
    return Condition(name, value)


def _key(name: str, value: str | None) -> Condition:
    if name == "output_dir":
        raise ValueError("each run has a folder of its own; use --output for all of them")
    if not value:
        raise ValueError(f"needs a value: {name}=VALUE")
    try:
        parse_scalar(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a YAML value; quote it") from None
    return Condition(name, value)


def _suggestion(name: str) -> str:
    listing = "`--vary list` names them"
    if "." in name:
        key = nearest_key(name)
        return f"; did you mean {key}?" if key else f"; {listing}"
    lowered = name.lower()
    known = _OTHER_NAMES | {kind.name: kind.name for kind in KINDS.values() if kind.is_listed}
    close = difflib.get_close_matches(lowered.replace("_", "-"), known, n=1, cutoff=0.6)
    best = known.get(lowered) or (known[close[0]] if close else nearest_key(name))
    return f"; did you mean {best}? {listing}" if best else f"; {listing}"


Target = Literal["recipes", "commands"]


def require_scope(condition: Condition, target: Target) -> None:
    """Refuse a condition that does not work for recipes, or for commands.

    Raises:
        UsageError: says what to do instead.
    """
    kind = KINDS.get(condition.name)
    if kind is not None:
        if kind.scope not in ("both", target):
            raise UsageError(f"--vary {condition}: is for {kind.scope}; {kind.instead}")
    elif target == "commands" and not condition.name.startswith(ENVIRONMENT_PREFIX):
        raise UsageError(
            f"--vary {condition}: is a key of recipes; a command has arguments: "
            '--vary argument="--FLAG VALUE"'
        )


def changes_environment(conditions: Iterable[Condition]) -> bool:
    """Tell whether environment classes differ by the conditions alone."""
    return any(
        condition.name.startswith((ENVIRONMENT_PREFIX, "model.", "reproducibility."))
        or (condition.name in KINDS and KINDS[condition.name].changes_environment)
        for condition in conditions
    )
