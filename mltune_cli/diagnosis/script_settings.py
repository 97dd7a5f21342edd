"""Settings in the scripts of a folder: what a user's own training code says, found in its syntax.

mltune runs none of it by itself; `repro-check -- python train.py` does.
"""

import ast
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_MOST_FILES = 400
_MOST_BYTES = 1_000_000
_DEPTH = 2
_SKIPPED = {
    "__pycache__", "build", "dist", "docs", "node_modules", "site-packages", "test", "tests",
    "venv",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A line of a script.

    Attributes:
        path: from the folder that was searched.
        line: from 1.
        text: of the line.
    """

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


Matches = Callable[[ast.AST], bool]


def places(folder: Path, words: tuple[str, ...], matches: Matches) -> list[Place]:
    """Return where scripts of a folder, and of those two below it, have something in their syntax.

    Args:
        folder: the first four hundred files are looked at.
        words: a file without any of them is not parsed.
        matches: tells whether a node of the syntax is it.
    """
    found: dict[tuple[str, int], Place] = {}
    for path in _scripts(folder):
        try:
            source = path.read_text(encoding="utf-8")
            if len(source) > _MOST_BYTES or not any(word in source for word in words):
                continue
            tree = ast.parse(source)
        except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
            continue  # whatever it is, Python would not run it either
        lines = source.splitlines()
        shown = str(path.relative_to(folder))
        for node in ast.walk(tree):
            line = getattr(node, "lineno", None)
            if line is not None and matches(node):
                text = lines[line - 1].strip()
                found.setdefault((shown, line), Place(shown, line, text))
    return [found[key] for key in sorted(found)]


def _scripts(folder: Path) -> Iterator[Path]:
    count = 0
    for root, folders, names in os.walk(folder):
        depth = len(Path(root).relative_to(folder).parts)
        folders[:] = sorted(
            name
            for name in folders
            if depth < _DEPTH
            and not name.startswith(".")
            and name not in _SKIPPED
            and not (Path(root) / name / "pyvenv.cfg").is_file()
        )
        for name in sorted(names):
            if name.endswith(".py"):
                count += 1
                if count > _MOST_FILES:
                    return
                yield Path(root) / name


def assigns_true(node: ast.AST, target: str) -> bool:
    """Tell whether a node sets an attribute, such as `cudnn.benchmark`, to True."""
    return assigns(
        node, target, lambda value: isinstance(value, ast.Constant) and value.value is True
    )


def assigns(node: ast.AST, target: str, fits: Callable[[ast.expr], bool]) -> bool:
    """Tell whether a node sets an attribute whose dotted name ends so to a fitting value."""
    if not isinstance(node, ast.Assign) or not fits(node.value):
        return False
    return any(
        isinstance(one, ast.Attribute) and f".{ast.unparse(one)}".endswith(f".{target}")
        for one in node.targets
    )


def passes_true(node: ast.AST, keyword: str) -> bool:
    """Tell whether a node is a call with `keyword=True`."""
    return isinstance(node, ast.Call) and any(
        one.arg == keyword and isinstance(one.value, ast.Constant) and one.value.value is True
        for one in node.keywords
    )


def listed(found: list[Place], most: int = 3) -> str:
    """Return places on one line."""
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(map(str, found[:most])) + more
