"""A command's arguments: one replaced, and paths that hold in another working directory."""

import os
import shlex
from pathlib import Path

# What follows these is no file, even where one has that name.
_NO_FILE_FOLLOWS = ("-m", "--module", "-c")


def with_arguments(command: list[str], text: str) -> list[str]:
    """Return a command with a flag's value replaced, or the flag added at the end.

    `--eval_steps 2` replaces the value of `--eval_steps 1`, `--eval-steps 1` and `--eval_steps=1`,
    the last of them where there are several.

    Args:
        command: program and arguments.
        text: the flag with its values, as in a shell.
    """
    flag, *values = shlex.split(text)
    name, equals, attached = flag.partition("=")
    if equals:
        values = [attached, *values]
    places = [
        place for place, part in enumerate(command)
        if place and _same(part.partition("=")[0], name)
    ]  # fmt: skip
    if not places:
        return [*command, *shlex.split(text)]
    place = places[-1]
    written, has_equals, _ = command[place].partition("=")
    if has_equals:
        return [*command[:place], "=".join([written, *values]), *command[place + 1 :]]
    end = place + 1
    while end < len(command) and end - place <= len(values) and not _is_flag(command[end]):
        end += 1
    return [*command[:place], written, *values, *command[end:]]


def _same(part: str, name: str) -> bool:
    return part.startswith("-") and part.replace("_", "-") == name.replace("_", "-")


def _is_flag(part: str) -> bool:
    # -1e-3 is a value
    return part.startswith("-") and not part[1:2].isdigit() and part != "-"


def with_absolute_paths(command: list[str], folder: Path) -> list[str]:
    """Return a command that finds its files from any working directory.

    Arguments that name something that exists below `folder`, and the part after `=` of
    `--data=FILE`, become absolute.
    """
    program, *rest = command
    changed = [_absolute(program, folder) if "/" in program else program]
    for before, part in zip(command, rest, strict=False):
        if before in _NO_FILE_FOLLOWS:
            changed.append(part)
            continue
        name, equals, value = part.partition("=")
        if equals and name.startswith("-"):
            changed.append(f"{name}={_absolute(value, folder)}")
        else:
            changed.append(_absolute(part, folder))
    return changed


def _absolute(part: str, folder: Path) -> str:
    # Unlike Path.exists, os.path.exists is False for a name that no file can have.
    if not part or part.startswith("-") or not os.path.exists(folder / part):  # noqa: PTH110
        return part
    return os.path.normpath(folder / part)


def names_module(command: list[str]) -> bool:
    """Tell whether a module is run by name, which Python looks for in the working directory."""
    return any(part in ("-m", "--module") for part in command)


def absolute_search_path(path: str, folder: Path) -> str:
    """Return a `PYTHONPATH` that means the same in any working directory."""
    return os.pathsep.join(os.path.normpath(folder / part) for part in path.split(os.pathsep))
