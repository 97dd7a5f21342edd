"""A command as a golden keeps it: without secrets, and without folders of the machine."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mltune_cli.command_secrets import without_secrets

# Within a word, such as the text that `sh -c` takes; not the slashes of an address.
_PATH_IN_TEXT = re.compile(r"(?<![^\s=:,;'\"(@<>])/(?!/)[^\s:,;'\"()&|<>]*")


def kept_command(words: Sequence[str], folder: Path) -> str:
    """Return a command to be written into a golden, and compared with what another one holds.

    Paths in the folder are kept relative to it, other absolute ones by their names alone: where
    Python or the data lies decides no bit, and is another place on the next machine.

    Args:
        words: program and arguments.
        folder: the working directory.
    """
    return shlex.join(_placed(word, folder) for word in without_secrets(words))


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
    return _PATH_IN_TEXT.sub(lambda found: _short(found[0], folder), word)


def _short(path: str, folder: Path) -> str:
    # Both as it is spelled and as it is: the working directory is known without its links.
    for spelled in (os.path.normpath(path), os.path.realpath(path)):
        if folder.name and Path(spelled).is_relative_to(folder):
            return str(Path(spelled).relative_to(folder))
    return PurePosixPath(path).name or "/"
