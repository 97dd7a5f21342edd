"""How a recipe comes together: defaults < YAML file < flags < --set, each value with its origin."""

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mltune_cli.bundled import BUNDLED_PREFIX, bundled_recipe
from mltune_cli.errors import RecipeValueError, UsageError
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
    "dataset": "data.train",
    "eval_steps": "evaluate.every_steps",
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


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe, the origin of every value, and the name its run folders get."""

    recipe: Recipe
    origins: Mapping[str, str]
    name: str

    def place(self, error: RecipeValueError) -> UsageError:
        """Put file and line, or the flag, in front of an error that only knows its key."""
        return place_error(error, self.origins)


def place_error(error: RecipeValueError, origins: Mapping[str, str]) -> UsageError:
    """Return `error` as a usage error that starts with the origin of its key."""
    origin = origins.get(error.key, DEFAULT_ORIGIN)
    return UsageError(error.message if origin == DEFAULT_ORIGIN else f"{origin}: {error.message}")


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
    entries |= {key: _anchored(key, entry, Path.cwd()) for key, entry in above.items()}
    return _checked(entries, name=path.stem)


def _checked(entries: Mapping[str, Entry], name: str) -> LoadedRecipe:
    origins = dict.fromkeys(known_keys(), DEFAULT_ORIGIN)
    origins |= {key: entry.origin for key, entry in entries.items()}
    tree: dict[str, Any] = {}
    for key, entry in entries.items():
        section, _, leaf = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[leaf] = entry.value
    try:
        recipe = Recipe.model_validate(tree)
        check_combinations(recipe)
    except ValidationError as error:
        raise place_error(_first_problem(error), origins) from None
    except RecipeValueError as error:
        raise place_error(error, origins) from None
    return LoadedRecipe(recipe, origins, name)


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
        raise UsageError(f"{entry.origin}: {key}: {problem}")
    suggestion = nearest_key(key)
    hint = (
        f"; did you mean {suggestion}?" if suggestion else f"; sections are {', '.join(sections)}"
    )
    raise UsageError(f"{entry.origin}: {key}: no such key{hint}")


def nearest_key(key: str) -> str | None:
    """Return the recipe key that a mistyped one most likely meant, or None."""
    keys = known_keys()
    leaf = key.rpartition(".")[2].replace("-", "_").lower()
    if leaf in _FOREIGN_NAMES:
        return _FOREIGN_NAMES[leaf]
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
        if not looks_like_path and not (folder / value).exists():
            return entry
    absolute = os.path.abspath(folder / Path(value).expanduser())  # noqa: PTH100 - keeps symlinks
    return Entry(absolute, entry.origin)


DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def _first_problem(error: ValidationError) -> RecipeValueError:
    """Turn pydantic's report into our sentence about the first wrong key."""
    details = error.errors()[0]
    location = [str(part) for part in details["loc"]]
    key = ".".join(location[:2]) if location and location[0] != "output_dir" else "output_dir"
    given = details.get("input")
    context = details.get("ctx", {})
    problems = {
        "int_type": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number",
        "finite_number": "must be a finite number",
        "bool_type": "must be true or false",
        "string_type": "must be text",
        "list_type": "must be a list",
        "model_type": "must be a section with keys",
        "literal_error": f"must be one of {context.get('expected')}",
        "string_pattern_mismatch": "must be a date like 2026-01-01",
    }
    bounds = {"greater_than_equal": "at least", "greater_than": "more than",
              "less_than": "less than", "less_than_equal": "at most"}  # fmt: skip
    kind = details["type"]
    if kind in bounds:
        bound = next(iter(context.values()))
        problem = f"must be {bounds[kind]} {bound:g}"
    else:
        problem = problems.get(kind, details["msg"])
    return RecipeValueError(key, f"{problem}, not {given!r}")
