"""How a recipe comes together: defaults < YAML file < flags < --set, each value with its origin."""

import difflib
import os
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mltune_cli.bundled import BUNDLED_PREFIX, TINY_MODEL, bundled_recipe
from mltune_cli.errors import RecipeValueError, UsageError
from mltune_cli.paths import is_there, working_folder
from mltune_cli.recipe.schema import Recipe, check_combinations
from mltune_cli.recipe.yaml_lines import parse_scalar, read_placed_values

DEFAULT_ORIGIN = "default"
_PATH_KEYS = ("data.train", "data.validation", "model.name_or_path", "output_dir")

# What other trainers call the same thing: a mistyped key is searched here as well.
_FOREIGN_NAMES = {
    "alpaca_path": "data.train",
    "base_model": "model.name_or_path",
    "batch_size": "train.micro_batch_size",
    "bf16": "model.dtype",
    "cutoff_len": "data.max_length",
    "dataloader_num_workers": "data.loader_workers",
    "dataset": "data.train",
    "early_stopping_patience": "evaluate.early_stopping_patience",
    "eval_steps": "evaluate.every_steps",
    "fsdp": "model.sharding",
    "gradient_accumulation_steps": "train.micro_batches_per_step",
    "gradient_checkpointing": "train.activation_checkpointing",
    "logging_steps": "log.every_steps",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "max_seq_length": "data.max_length",
    "model_name_or_path": "model.name_or_path",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "train.micro_batch_size",
    "r": "adapter.rank",
    "report_to": "log.trackers",
    "save_steps": "checkpoint.every_steps",
    "save_total_limit": "checkpoint.keep",
    "sequence_len": "data.max_length",
    "train_file": "data.train",
    "validation_file": "data.validation",
    "warmup": "train.warmup_steps",
}


@dataclass(frozen=True)
class Entry:
    """One value and where it came from: `recipe.yaml:12`, a flag, `--set`."""

    value: Any
    origin: str


_TINY = Entry(TINY_MODEL, DEFAULT_ORIGIN)


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe, the origin of every value, and the name its run folders get."""

    recipe: Recipe
    origins: Mapping[str, str]
    name: str


def place_error(error: RecipeValueError, origins: Mapping[str, str]) -> UsageError:
    """Return `error` as a usage error that starts with the origin of its key."""
    origin = origins.get(error.key, DEFAULT_ORIGIN)
    if origin == DEFAULT_ORIGIN:
        return UsageError(error.message)
    return UsageError(f"{_with_key(origin, error.key)}: {error.problem}")


def _with_key(origin: str, key: str) -> str:
    """Return `recipe.yaml:3: section.key`; an origin like `--set section.key` says it already."""
    return origin if origin.endswith(f" {key}") else f"{origin}: {key}"


def known_keys() -> list[str]:
    """Return every dotted key of a recipe, in the schema's order."""
    return list(flatten(Recipe().model_dump()))


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{"section.key": value}` of a dumped recipe."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{key}": leaf for key, leaf in value.items()})
        else:
            flat[name] = value
    return flat


def load_recipe(
    config: Path | None, flags: Mapping[str, Entry], assignments: Iterable[str] = ()
) -> LoadedRecipe:
    """Read, layer and check a recipe.

    Args:
        config: a recipe file; None is the bundled smoke recipe.
        flags: dotted key to entry, from the command line.
        assignments: the `--set section.key=value` texts, in order.

    Raises:
        UsageError: anything wrong with file, keys or values; one sentence naming the place.
    """
    path = bundled_recipe("smoke") if config is None else config
    display = "smoke.yaml (bundled)" if config is None else str(config)
    entries: dict[str, Entry] = {}
    for placed in read_placed_values(path):
        entry = Entry(placed.value, f"{display}:{placed.line}")
        _require_known(placed.key, entry)
        entries[placed.key] = _anchored(placed.key, entry, path.parent)
    above = dict(flags) | _parse_assignments(assignments)
    for key, entry in above.items():
        _require_known(key, entry)
    if config is None and "data.train" in above and "data.validation" not in above:
        # The bundled held-out rows say nothing about another data set.
        for key in ("data.validation", "evaluate.every_steps"):
            entries.pop(key, None)
    if config is None and above.get("model.name_or_path", _TINY).value != TINY_MODEL:
        # What suits a tiny model on any machine is no choice for another one.
        for key in ("model.device", "model.dtype"):
            entries.pop(key, None)
    for key, other in (("train.max_steps", "train.epochs"), ("train.epochs", "train.max_steps")):
        # Saying how long to train by one takes back what a lower layer said by the other.
        if key in above and above[key].value is not None and other not in above:
            entries[other] = Entry(None, above[key].origin)
    entries |= {key: _anchored(key, entry, working_folder()) for key, entry in above.items()}
    return _checked(entries, name=path.stem, display=display)


def check_assignments(assignments: Iterable[str]) -> None:
    """Refuse `--set` texts that suit no recipe at all; what else a recipe says is not asked.

    Raises:
        UsageError: a text is none, its key is unknown, or its value is of another kind.
    """
    entries = _parse_assignments(assignments)
    for key, entry in entries.items():
        _require_known(key, entry)
    _validated(entries, {key: entry.origin for key, entry in entries.items()})


def _checked(entries: Mapping[str, Entry], name: str, display: str) -> LoadedRecipe:
    origins = dict.fromkeys(known_keys(), DEFAULT_ORIGIN)
    origins |= {key: entry.origin for key, entry in entries.items()}
    recipe = _validated(entries, origins)
    try:
        check_combinations(recipe)
    except RecipeValueError as error:
        if origins[error.key] == DEFAULT_ORIGIN:
            raise UsageError(f"{display}: {error.message}") from None
        raise place_error(error, origins) from None
    return LoadedRecipe(recipe, origins, name)


def _validated(entries: Mapping[str, Entry], origins: Mapping[str, str]) -> Recipe:
    """Return the recipe of some values, each looked at by itself."""
    tree: dict[str, Any] = {}
    for key, entry in entries.items():
        _require_encodable(key, entry)
        section, _, leaf = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[leaf] = entry.value
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise place_error(_first_problem(error), origins) from None


def _parse_assignments(assignments: Iterable[str]) -> dict[str, Entry]:
    entries = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {text}: write it as --set section.key=value")
        try:
            entries[key.strip()] = Entry(parse_scalar(value), f"--set {key.strip()}")
        except ValueError:
            raise UsageError(f"--set {text}: {value!r} is not a YAML value; quote it") from None
    return entries


def _require_known(key: str, entry: Entry) -> None:
    keys = known_keys()
    if key in keys:
        return
    sections = sorted({name.partition(".")[0] for name in keys if "." in name})
    if key in sections:
        problem = "is a section; give it keys"
        if entry.value is None:
            problem = "is an empty section; give it keys or remove it"
        raise UsageError(f"{_with_key(entry.origin, key)}: {problem}")
    suggestion = nearest_key(key)
    section = key.partition(".")[0]
    if suggestion:
        hint = f"; did you mean {suggestion}?"
    elif section in sections:
        leaves = [name.partition(".")[2] for name in keys if name.startswith(f"{section}.")]
        hint = f"; {section} has {', '.join(leaves)}"
    else:
        hint = f"; sections are {', '.join(sections)}"
    raise UsageError(f"{_with_key(entry.origin, key)}: no such key{hint}")


def _require_encodable(key: str, entry: Entry) -> None:
    """Refuse text that neither a file name nor a JSON file can hold."""
    values = entry.value if isinstance(entry.value, list) else [entry.value]
    for value in values:
        if isinstance(value, str) and ("\0" in value or _has_surrogates(value)):
            raise UsageError(
                f"{_with_key(entry.origin, key)}: holds characters that are not UTF-8 text"
            )


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def nearest_key(key: str) -> str | None:
    """Return the recipe key that a mistyped one most likely meant, or None."""
    keys = known_keys()
    leaf = key.rpartition(".")[2].replace("-", "_").lower()
    if leaf in _FOREIGN_NAMES:
        return _FOREIGN_NAMES[leaf]
    begun = [name for name in keys if name.startswith(key)]
    if len(begun) == 1:
        return begun[0]
    # Inside a section that exists, its long name must not make any of its keys look alike.
    section = key.rpartition(".")[0]
    leaves = [name.rpartition(".")[2] for name in keys if name.rpartition(".")[0] == section]
    if section and leaves:
        close = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)
        if close:
            return f"{section}.{close[0]}"
    else:
        close = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
        if close:
            return close[0]
    by_leaf = {name.rpartition(".")[2]: name for name in keys}
    close = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.7)
    return by_leaf[close[0]] if close else None


def _anchored(key: str, entry: Entry, folder: Path) -> Entry:
    """Make a path absolute: a recipe file's paths start at the file, a flag's at the shell.

    A run may then be started from any working directory. Hub ids and bundled names stay.
    """
    value = entry.value
    if key not in _PATH_KEYS or not isinstance(value, str) or not value:
        return entry
    if key != "output_dir":
        if value.startswith(BUNDLED_PREFIX):
            return entry
        looks_like_path = value.startswith((".", "/", "~")) or Path(value).suffix in DATA_SUFFIXES
        if not looks_like_path and not is_there(folder / value):
            return entry
    # Unlike Path.resolve, abspath keeps symbolic links; an unknown ~user stays as it is.
    absolute = os.path.abspath(folder / os.path.expanduser(value))  # noqa: PTH100, PTH111
    return Entry(absolute, entry.origin)


DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def _first_problem(error: ValidationError) -> RecipeValueError:
    """Turn pydantic's report into our sentence about the first wrong key."""
    found = error.errors()
    location = [str(part) for part in found[0]["loc"]]
    key = ".".join(location[:2]) if location and location[0] != "output_dir" else "output_dir"
    # A key that takes several types is reported once for each; the deepest report is the nearest.
    same_key = [details for details in found if details["loc"][:2] == found[0]["loc"][:2]]
    depth = max(len(details["loc"]) for details in same_key)
    nearest = [details for details in same_key if len(details["loc"]) == depth]
    problem = " or ".join(dict.fromkeys(_problem(details) for details in nearest))
    problem = "must be " + problem if depth <= 3 else "its items must be " + problem
    return RecipeValueError(key, f"{problem}, not {_shown(nearest[0].get('input'))}")


def _problem(details: Mapping[str, Any]) -> str:
    """Return what a value must be, to be put after "must be"."""
    context = details.get("ctx", {})
    problems = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "text",
        "list_type": "a list",
        "model_type": "a section with keys",
        "literal_error": _alternatives(str(context.get("expected"))),
        "string_pattern_mismatch": "a date like 2026-01-01",
    }
    bounds = {"greater_than_equal": "at least", "greater_than": "more than",
              "less_than": "less than", "less_than_equal": "at most"}  # fmt: skip
    kind = details["type"]
    if kind in bounds:
        bound = next(iter(context.values()))
        return f"{bounds[kind]} {bound if isinstance(bound, int) else format(bound, 'g')}"
    return problems.get(kind, str(details["msg"]))


def _alternatives(expected: str) -> str:
    return f"one of {expected}" if "," in expected or " or " in expected else expected


def _shown(value: Any) -> str:
    """Return a value for a message: short, however large it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to spell a number of thousands of digits
        return "that"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
