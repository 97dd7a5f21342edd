"""Paths that a user named: every question has an answer, whoever may look at them.

`Path.exists` and its like raise where a folder above belongs to somebody else, or where no file can
have such a name; what is done with the path afterwards says so better.
"""

import os
from pathlib import Path

from mltune_cli.errors import UsageError


def is_there(path: str | Path) -> bool:
    """Tell whether something is there, as far as this user can see."""
    return os.path.exists(path)  # noqa: PTH110 - False where Path.exists raises


def is_folder(path: str | Path) -> bool:
    """Tell whether a folder is there, as far as this user can see."""
    return os.path.isdir(path)  # noqa: PTH112 - False where Path.is_dir raises


def is_file(path: str | Path) -> bool:
    """Tell whether a file is there, as far as this user can see."""
    return os.path.isfile(path)  # noqa: PTH113 - False where Path.is_file raises


def sight_problem(path: Path) -> str | None:
    """Say why nobody can tell what is there; None where it can be seen, or nothing is there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def working_folder() -> Path:
    """Return the folder that the command was started in.

    Raises:
        UsageError: it was removed meanwhile.
    """
    try:
        return Path.cwd()
    except OSError as error:
        raise UsageError(
            f"the working directory cannot be used: {error.strerror}; change to one that is there"
        ) from None
