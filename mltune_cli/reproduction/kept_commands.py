"""A command as a golden keeps it: without secrets, and without folders of the machine."""

import itertools
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mltune_cli.command_secrets import without_secrets

# Within a word, such as the text that `sh -c` takes. A slash begins a path after one of these; not
# after a colon where it is one of the two of an address, nor within 1/2 or a relative path.
_AFTER = r"(?<![^\s=,;'\"`(\[{|&!@<>])"
_AFTER_COLON_TOO = r"(?<![^\s=:,;'\"`(\[{|&!@<>])"
# Brackets belong to a path in pairs, as in `/data/{run}/rows`: one alone is around it.
_IN_PATH = r"(?:[^\s:,;'\"`()\[\]{}|&<>]|\[[^\s\[\]/]*\]|\{[^\s{}/]*\})"
_PATH_IN_TEXT = re.compile(
    rf"(?:{_AFTER_COLON_TOO}(?=/(?!/))"
    rf"|{_AFTER}(?=//+[^\s/]+/)"
    # An address without a host, or of a file, is a path: what is dropped is what is before it.
    r"|(?<=[A-Za-z]:)//(?=/)|(?<=\bfile:)//[\w.-]+(?=/)"
    # Of a flag with its value attached, such as -I/usr/include; -a/b may be a fraction.
    rf"|{_AFTER}(?P<flag>-[A-Za-z])(?=/+[^\s/]+/))"
    rf"(?P<path>/{_IN_PATH}*)"
)

# The flag of a shell, or of Python, that takes a command as text: -c, -lc.
_TEXT_FOLLOWS = re.compile(r"-[A-Za-z]*c")


def kept_command(words: Sequence[str], folder: Path) -> str:
    """Return a command to be written into a golden, and compared with what another one holds.

    Paths in the folder are kept relative to it, other absolute ones by their names alone: where
    Python or the data lies decides no bit, and is another place on the next machine.

    Args:
        words: program and arguments.
        folder: the working directory.
    """
    kept = without_secrets(words)
    return shlex.join(
        _placed_in_text(word, folder) if _TEXT_FOLLOWS.fullmatch(before) else _placed(word, folder)
        for before, word in itertools.pairwise(["", *kept])
    )


def kept_subject(subject: str) -> str:
    """Return a golden's command as it would be kept now: earlier versions kept it as it was."""
    try:
        words = shlex.split(subject)
    except ValueError:
        return subject
    return kept_command(words, Path.cwd())


def _placed(word: str, folder: Path) -> str:
    name, equals, value = word.partition("=")
    if word.startswith("/") and ":" not in word:
        return _short(word, folder)
    if equals and value.startswith("/") and ":" not in value:
        return f"{name}={_short(value, folder)}"
    return _placed_in_text(word, folder)


def _placed_in_text(text: str, folder: Path) -> str:
    return _PATH_IN_TEXT.sub(
        lambda found: (found["flag"] or "") + _short(found["path"], folder), text
    )


def _short(path: str, folder: Path) -> str:
    path = "/" + path.lstrip("/")  # two slashes at the beginning would be another root
    # Both as it is spelled and as it is: the working directory is known without its links.
    for spelled in (os.path.normpath(path), os.path.realpath(path)):
        if folder.name and Path(spelled).is_relative_to(folder):
            return str(Path(spelled).relative_to(folder))
    return PurePosixPath(path).name or "/"
