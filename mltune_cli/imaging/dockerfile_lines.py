"""The lines of a Dockerfile: instructions, continuations, heredocs, words and variables.

After the Dockerfile reference of Docker's documentation; what a line means is read elsewhere.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mltune_cli.errors import UsageError

_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
_HEREDOC = re.compile(r"\d*<<(-?)(['\"]?)([^<\s'\"]+)\2")
_FLAG = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?(?:\s+|$)")
_VARIABLE = re.compile(
    r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)"
    r"(?:(?P<operator>:?[-+?])(?P<word>[^{}]*))?\}"
)


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        line: the number of its first line, from 1.
        name: in capitals.
        flags: its `--name=value`; the value of one without is empty.
        rest: the text after the flags, its lines joined.
        heredocs: whether text of the lines after it belongs to it.
    """

    line: int
    name: str
    flags: Mapping[str, str]
    rest: str
    heredocs: bool = False

    def words(self) -> list[str]:
        """Return the words of the rest, of its JSON form or between white space."""
        if self.rest.startswith("["):
            try:
                words = json.loads(self.rest)
            except ValueError:
                words = None  # as Docker has it, text that is no JSON is an ordinary word
            if isinstance(words, list) and all(isinstance(word, str) for word in words):
                return words
        return self.rest.split()


@dataclass(frozen=True)
class Lines:
    """A Dockerfile as instructions, and what its first comments tell the builder."""

    directives: Mapping[str, str]
    directive_lines: Mapping[str, int]
    instructions: tuple[Instruction, ...]

    @property
    def escape(self) -> str:
        """The character that joins lines and takes a variable's meaning away."""
        return self.directives.get("escape", "\\")


def read_lines(text: str, name: str) -> Lines:
    """Split a Dockerfile into its instructions.

    Args:
        text: of the Dockerfile.
        name: of the file, for the messages.

    Raises:
        UsageError: a heredoc without its end, an escape character that is none.
    """
    lines = re.split(r"\r?\n", text.removeprefix("\ufeff"))
    directives, places = _directives(lines)
    escape = directives.get("escape", "\\")
    if escape not in ("\\", "`"):
        raise UsageError(
            f"{name}:{places['escape']}: the escape character is \\ or `, and not {escape}"
        )
    return Lines(directives, places, tuple(_instructions(lines, escape, name)))


def _directives(lines: list[str]) -> tuple[dict[str, str], dict[str, int]]:
    directives: dict[str, str] = {}
    places: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None or match[1].lower() in directives:
            break  # they stand before everything else, ordinary comments included
        if match[1].lower() not in ("syntax", "escape", "check"):
            break
        directives[match[1].lower()] = match[2]
        places[match[1].lower()] = number
    return directives, places


def _instructions(lines: list[str], escape: str, name: str) -> Iterator[Instruction]:
    mark = re.escape(escape)
    continued = re.compile(rf"(?<!{mark}){mark}[ \t]*$")
    position = 0
    while position < len(lines):
        first = position
        parts: list[str] = []
        while position < len(lines):
            line = lines[position]
            position += 1
            if not line.strip() or line.lstrip().startswith("#"):
                if parts:
                    continue  # between continued lines, too, they are left out
                first = position
                break
            parts.append(continued.sub("", line))
            if continued.search(line) is None:
                break
        text = "".join(parts).strip()
        if not text:
            continue
        instruction = _instruction(text, first + 1)
        if instruction.name in ("RUN", "COPY", "ADD"):
            ends = [(match[3], match[1] == "-") for match in _heredocs(instruction.rest)]
            for end, is_indented in ends:
                position = _after_heredoc(lines, position, end, is_indented, name, first + 1)
            if ends:
                instruction = Instruction(
                    instruction.line, instruction.name, instruction.flags, instruction.rest, True
                )
        yield instruction


def _heredocs(rest: str) -> Iterator[re.Match[str]]:
    if not rest.startswith("["):
        for word in rest.split():
            if match := _HEREDOC.fullmatch(word):
                yield match


def _after_heredoc(
    lines: list[str], position: int, end: str, is_indented: bool, name: str, first: int
) -> int:
    for number in range(position, len(lines)):
        line = lines[number].lstrip("\t") if is_indented else lines[number]
        if line == end:
            return number + 1
    raise UsageError(f"{name}:{first}: the heredoc has no line {end} that ends it")


def _instruction(text: str, line: int) -> Instruction:
    name, *rests = text.split(maxsplit=1)
    rest = "".join(rests)
    flags = {}
    while match := _FLAG.match(rest):
        flags[match[1]] = match[2] or ""
        rest = rest[match.end() :]
    return Instruction(line, name.upper(), flags, rest)


def expand(word: str, values: Mapping[str, str], escape: str, missing: str | None = None) -> str:
    """Return a word with its variables replaced and its quotes removed.

    Args:
        word: of an instruction.
        values: of the variables that are known there.
        escape: the character that takes a variable's meaning away.
        missing: what stands for a variable without a value; None to raise.

    Raises:
        KeyError: a variable has no value; its name.
        ValueError: an expansion that is not known, or a quote without its end.
    """
    found, position, quote = [], 0, ""
    while position < len(word):
        character = word[position]
        position += 1
        if quote == "'" and character != "'":
            found.append(character)
        elif character == quote:
            quote = ""
        elif character in "'\"" and not quote:
            quote = character
        elif character == escape and position < len(word):
            # Before a glob character it is the glob's, which is matched later.
            found.append(("" if word[position] in "$'\"" + escape else escape) + word[position])
            position += 1
        elif character == "$":
            match = _VARIABLE.match(word, position)
            if match is None:
                raise ValueError(f"${word[position:]} is no variable that can be read")
            found.append(_value(match, values, escape, missing))
            position = match.end()
        else:
            found.append(character)
    if quote:
        raise ValueError(f"{word} lacks a closing {quote}")
    return "".join(found)


def _value(
    match: re.Match[str], values: Mapping[str, str], escape: str, missing: str | None
) -> str:
    name, operator = match["name"] or match["braced"], match["operator"] or ""
    value = values.get(name)
    is_set = value is not None and (value != "" or ":" not in operator)
    if operator.endswith("+"):
        return expand(match["word"], values, escape, missing) if is_set else ""
    if is_set:
        return str(value)
    if operator.endswith("-"):
        return expand(match["word"], values, escape, missing)
    if missing is None:
        raise KeyError(name)
    return missing
