"""The rules of a .dockerignore.

The language of Docker's documentation: one pattern a line, `#` comments, `*`, `?`, `[...]`, `**`
for any number of folders, `!` for an exception; the last rule that matches a path or a folder above
it decides. Not read: a `<Dockerfile>.dockerignore` beside the Dockerfile, which only BuildKit
knows.
"""

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

from mltune_cli.errors import UsageError

IGNORE_FILE = ".dockerignore"


@dataclass(frozen=True)
class IgnoreRule:
    """One line: what it matches, and whether it takes that in again."""

    pattern: re.Pattern[str]
    is_exception: bool


@dataclass(frozen=True)
class IgnoreRules:
    """The rules, in order."""

    rules: tuple[IgnoreRule, ...] = ()

    @property
    def has_exceptions(self) -> bool:
        """Whether a file below an ignored folder may be taken in again."""
        return any(rule.is_exception for rule in self.rules)

    def ignores(self, path: str) -> bool:
        """Tell whether a path, relative to the context and with `/`, is left out."""
        parts = path.split("/")
        prefixes = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        is_ignored = False
        for rule in self.rules:
            if rule.is_exception == is_ignored:
                matches = any(rule.pattern.fullmatch(prefix) for prefix in prefixes)
                is_ignored = is_ignored != matches
        return is_ignored


def read_rules(project: Path) -> IgnoreRules:
    """Read the .dockerignore of a project; no rules where there is none.

    Raises:
        UsageError: it cannot be read, or a pattern of it is none; with `FILE:LINE`.
    """
    path = project / IGNORE_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return IgnoreRules()
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise UsageError(f"{path}: cannot be read: {problem}") from None
    return parse_rules(text, str(path))


def parse_rules(text: str, name: str = IGNORE_FILE) -> IgnoreRules:
    """Read the text of a .dockerignore; like `read_rules`."""
    rules = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if line.startswith("#") or not line.strip():
            continue
        pattern = line.strip()
        is_exception = pattern.startswith("!")
        pattern = pattern.removeprefix("!").strip()
        if not pattern:
            raise UsageError(f"{name}:{number}: the exception names nothing")
        clean = posixpath.normpath(pattern)
        clean = clean.lstrip("/") if len(clean) > 1 else clean
        try:
            rules.append(IgnoreRule(glob_pattern(clean), is_exception))
        except re.error:
            raise UsageError(f"{name}:{number}: {pattern} is no pattern") from None
    return IgnoreRules(tuple(rules))


def glob_pattern(glob: str) -> re.Pattern[str]:
    r"""Return what a pattern of .dockerignore or of COPY matches, as a regular expression.

    `*` and `?` stay within one part of a path, `**` does not, and `\` takes their meaning away.

    Raises:
        re.error: the pattern is broken.
    """
    found, position = [], 0
    while position < len(glob):
        character = glob[position]
        position += 1
        if character == "*" and glob.startswith("*", position):
            position += 1
            if glob.startswith("/", position):
                position += 1
                found.append("(?:.*/)?")
            else:
                found.append(".*" if position == len(glob) else "(?:.*/)?")
        elif character == "*":
            found.append("[^/]*")
        elif character == "?":
            found.append("[^/]")
        elif character == "[":
            end = glob.find("]", position + 1)
            if end < 0:
                raise re.error("a class without its end", glob)
            found.append(_class(glob[position:end]))
            position = end + 1
        else:
            if character == "\\" and position < len(glob):
                character = glob[position]
                position += 1
            found.append(re.escape(character))
    return re.compile("".join(found), re.DOTALL)


def _class(inside: str) -> str:
    is_negated = inside.startswith("^")
    inside = inside.removeprefix("^").replace("\\", r"\\").replace("[", r"\[")
    # The class of an ignore file never matches the character between the parts of a path.
    return f"(?!/)[{'^' if is_negated else ''}{inside}]"
