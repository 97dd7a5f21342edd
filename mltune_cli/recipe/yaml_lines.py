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
    except yaml.YAMLError as error:
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
    loader = _RecipeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise UsageError(f"{path}: is empty; a recipe needs at least data.train")
        if not isinstance(root, yaml.MappingNode):
            raise UsageError(f"{path}:{_line(root)}: a recipe is a mapping of sections")
        return list(_walk(loader, root, prefix="", path=path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{place}: not valid YAML: {problem}") from None
    finally:
        loader.dispose()


def _walk(
    loader: _RecipeLoader, mapping: yaml.MappingNode, prefix: str, path: Path
) -> Iterator[PlacedValue]:
    seen: dict[str, int] = {}
    for key_node, value_node in mapping.value:
        key = f"{prefix}{loader.construct_object(key_node, deep=True)}"
        line = _line(key_node)
        if key in seen:
            raise UsageError(f"{path}:{line}: {key}: stands already on line {seen[key]}")
        seen[key] = line
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            yield from _walk(loader, value_node, prefix=f"{key}.", path=path)
        else:
            yield PlacedValue(key, loader.construct_object(value_node, deep=True), line)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
