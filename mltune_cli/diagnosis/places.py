"""Folders that something will be written into: whether that can be, and what room there is."""

import os
import tempfile
from pathlib import Path

from mltune_cli.paths import is_folder, is_there

_PROBE = ".mltune-probe-"


def nearest_folder(path: Path) -> Path:
    """Return the folder itself, or the nearest above it that exists."""
    path = path.absolute()
    while not is_there(path) and path != path.parent:
        path = path.parent
    return path


def write_problem(path: Path) -> str | None:
    """Say why a folder cannot be written into, or made; None where it can.

    Something is written for it, and removed: permissions alone do not tell of a disk that is full
    or read-only.
    """
    nearest = nearest_folder(path)
    if not is_folder(nearest):
        return f"{nearest} is a file"
    try:
        with tempfile.NamedTemporaryFile(prefix=_PROBE, dir=nearest) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def free_bytes(path: Path) -> int:
    """Return what an ordinary user may still write on the file system of a folder.

    Raises:
        OSError: the system does not tell.
    """
    status = os.statvfs(nearest_folder(path))
    return status.f_bavail * status.f_frsize
