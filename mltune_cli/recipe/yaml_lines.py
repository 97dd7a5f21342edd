"""YAML read with the line of every value, so that an error can point at it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mltune_cli.errors import UsageError


class _RecipeLoader(yaml.SafeLoader):
    """SafeLoader that reads `2e-4` as the number it is (YAML 1.2), not as text (YAML 1.1)."""


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
             |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
             |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
             |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)
# Nor is `2026-01-01` anything but text: no value of a recipe is a point in time.
_RecipeLoader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
    for first, pairs in _RecipeLoader.yaml_implicit_resolvers.items()
}
# What constructors raise for a value that its tag does not allow, such as `!!int five`, for
# more digits than Python reads, and for thousands of nested brackets.
_CONSTRUCTOR_ERRORS = (ValueError, TypeError, AttributeError, LookupError, RecursionError)


@dataclass(frozen=True)
class PlacedValue:
    """A value and the line (counted from 1) on which its key stands."""

    key: str
    value: Any
    line: int


def parse_scalar(text: str) -> Any:
    """Read the right-hand side of `--set key=value` as YAML.

    Raises:
        ValueError: the text is not YAML.
    """
    try:
        return yaml.load(text, Loader=_RecipeLoader)  # noqa: S506 - a SafeLoader subclass
    except (yaml.YAMLError, *_CONSTRUCTOR_ERRORS) as error:
        raise ValueError(str(error)) from error


def read_placed_values(path: Path) -> list[PlacedValue]:
    """Read a recipe file as a flat list of dotted keys with their lines.

    Raises:
        UsageError: the file is missing, unreadable, not UTF-8, not YAML, or not a mapping of
            sections; the sentence names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such recipe file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return _placed_values(_RecipeLoader(text), path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{place}: not valid YAML: {problem}") from None
    except RecursionError:
        raise UsageError(f"{path}: not valid YAML: nested too deeply") from None


def _placed_values(loader: _RecipeLoader, path: Path) -> list[PlacedValue]:
    try:
        root = loader.get_single_node()
        if root is None:
            raise UsageError(f"{path}: is empty; a recipe needs at least data.train")
        if not isinstance(root, yaml.MappingNode):
            raise UsageError(f"{path}:{_line(root)}: a recipe is a mapping of sections")
        seen: dict[str, int] = {}
        placed = []
        for key, value_node, line in _items(loader, root, "", seen, path):
            if isinstance(value_node, yaml.MappingNode) and value_node.value:
                items = _items(loader, value_node, f"{key}.", seen, path)
                placed += [PlacedValue(k, _built(loader, n, k, path), at) for k, n, at in items]
            else:
                placed.append(PlacedValue(key, _built(loader, value_node, key, path), line))
        return placed
    finally:
        loader.dispose()


def _items(
    loader: _RecipeLoader,
    mapping: yaml.MappingNode,
    prefix: str,
    seen: dict[str, int],
    path: Path,
) -> Iterator[tuple[str, yaml.Node, int]]:
    """Yield dotted key, value node and line; refuse a key that `seen` has already."""
    for key_node, value_node in mapping.value:
        line = _line(key_node)
        key = f"{prefix}{_built(loader, key_node, f'{prefix}?', path)}"
        if key in seen:
            raise UsageError(f"{path}:{line}: {key}: stands already on line {seen[key]}")
        seen[key] = line
        yield key, value_node, line


def _built(loader: _RecipeLoader, node: yaml.Node, key: str, path: Path) -> Any:
    try:
        return loader.construct_object(node, deep=True)
    except _CONSTRUCTOR_ERRORS:
        raise UsageError(f"{path}:{_line(node)}: {key}: not a value that YAML can hold") from None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
